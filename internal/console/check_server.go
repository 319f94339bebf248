package console

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/pgbaton/pgbaton/internal/baton"
	"github.com/pgbaton/pgbaton/internal/ocf"
	"github.com/pgbaton/pgbaton/internal/postgres"
)

// checkServer looks at the configuration of this node's PostgreSQL, as its files say it: what the next start takes.
func (s *Site) checkServer() {
	s.checkDurability()
	s.checkStandby()
	s.checkConninfo()
	s.checkRoom()
	s.checkReach()
	s.checkArchiving()
}

// off knows PostgreSQL's words for false (parse_bool).
func off(v string) bool {
	v = strings.ToLower(v)
	return v != "" && (v == "0" || strings.HasPrefix("false", v) || strings.HasPrefix("no", v) || v == "of" || v == "off")
}

func (s *Site) checkDurability() {
	for _, name := range []string{"fsync", "full_page_writes"} {
		if off(s.conf(name, "on")) {
			s.here(name+"-off", Critical, s.setting(name, "on", false), "after a loss of power the data is damaged, and the proof of a handover worth nothing", "%s is off", name)
		}
	}
	if !s.Ctl.DataChecksums && off(s.conf("wal_log_hints", "off")) {
		s.here("no-rewind", Warning, s.setting("wal_log_hints", "on", true), "a node that has diverged cannot be rewound (pg_rewind) and must be cloned anew", "there are neither data checksums nor wal_log_hints")
	}
	s.checkSyncNames()
	if s.conf("wal_sender_timeout", "60s") == "0" {
		s.here("wal-sender-timeout", Warning, s.setting("wal_sender_timeout", "60s", false), "a walsender whose standby is gone holds up the shutdown for ever", "wal_sender_timeout is 0")
	}
}

// syncNames are the parts of synchronous_standby_names with a number: the method, the number, the list. A list without them means
// FIRST 1 (syncrep_gram.y).
var syncNames = regexp.MustCompile(`(?is)^\s*((?:(?:first|any)\s+)?)([0-9]+)\s*\((.*)\)\s*$`)

// checkSyncNames: how many standbys a commit waits for, and which.
func (s *Site) checkSyncNames() {
	list, method, number := s.conf("synchronous_standby_names", ""), "FIRST ", 1
	m := syncNames.FindStringSubmatch(list)
	if m != nil {
		list, method = m[3], m[1]
		number, _ = strconv.Atoi(m[2])
	}
	all := postgres.SplitList(list)
	if len(all) == 0 {
		return
	}
	itself := func(name string) bool { return strings.EqualFold(name, s.Here) } // as PostgreSQL compares them
	left := slices.DeleteFunc(slices.Clone(all), itself)
	// naming is what to do so that the list names so many standbys and all of them are waited for.
	naming := func(number int, otherwise string) string {
		names := left
		if !slices.Contains(left, "*") && len(left) < number {
			for _, n := range s.State.Nodes {
				if !slices.ContainsFunc(all, func(name string) bool { return strings.EqualFold(name, n.Name) }) && !itself(n.Name) {
					names = append(names, n.Name)
				}
			}
			if len(names) < number {
				return otherwise
			}
		}
		quoted := make([]string, len(names))
		for i, name := range names {
			if quoted[i] = name; name != "*" {
				quoted[i] = `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
			}
		}
		text := strings.Join(quoted, ", ")
		if m != nil || number > 1 {
			text = fmt.Sprintf("%s%d (%s)", method, number, text)
		}
		return s.setting("synchronous_standby_names", text, false)
	}
	// A primary is never among its own standbys. A list of all nodes on all nodes does no harm, as long as the others are enough.
	if len(left) < len(all) && len(left) < number && !slices.Contains(left, "*") {
		// As many are waited for as before, or rows could be lost that were not before.
		do := naming(number, fmt.Sprintf("name %d or more other standbys in synchronous_standby_names, or ask for fewer: each one less is one copy less of every commit", number))
		s.here("sync-names-itself", Warning, do, "as primary this node would wait for itself, and no commit returns", "synchronous_standby_names names this node, %s, and asks for %d: others named are %d", s.Here, number, len(left))
		return
	}
	// Whoever takes over has heard a majority. A commit that is on so many nodes is on one of any majority.
	nodes := len(s.State.Nodes)
	majority := baton.Quorum(nodes)
	if enough := nodes - majority; number < enough {
		do := naming(enough, fmt.Sprintf("name %d or more standbys in synchronous_standby_names, and ask for %d", enough, enough))
		s.here("sync-names-few", Warning, do, fmt.Sprintf("a takeover needs the word of %d of %d nodes, none of which may have that commit: where it must not be lost, wait for %d", majority, nodes, enough), "synchronous_standby_names asks for %d: a commit is on %d nodes", number, number+1)
	}
}

func (s *Site) checkStandby() {
	if off(s.conf("hot_standby", "on")) {
		s.here("hot-standby-off", Critical, s.setting("hot_standby", "on", true), "the agent cannot ask a standby, which then never gets the score to take over", "hot_standby is off")
	}
	if v := s.conf("recovery_min_apply_delay", "0"); v != "0" && v != "0s" && v != "0ms" {
		s.here("apply-delay", Critical, s.setting("recovery_min_apply_delay", "0", false), "a promotion replays all that is delayed first: that is the outage", "recovery_min_apply_delay is %s", v)
	}
	for _, name := range []string{"recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_xid"} {
		if v := s.conf(name, ""); v != "" {
			s.here("recovery-target", Critical, s.setting(name, "", true), "a standby stops there instead of following the primary", "%s is set to %s", name, v)
		}
	}
	if v := s.conf("recovery_target_timeline", "latest"); v != "latest" {
		s.here("recovery-timeline", Critical, s.setting("recovery_target_timeline", "latest", true), "a standby does not follow a new primary", "recovery_target_timeline is %s", v)
	}
}

// conninfo is what to do to set a keyword in primary_conninfo: the command, or words where that would show a password or lose
// what is not understood. It returns the string with it, for what else is to be set.
func (s *Site) conninfo(info, key, value string) (do, changed string) {
	_, secret := postgres.ShownConninfo(info)
	changed, ok := postgres.SetConninfo(info, key, value)
	byHand := "set " + key + "=" + value + " in primary_conninfo by hand: "
	switch {
	case !ok:
		return byHand + "it is not understood here", info
	case secret:
		return byHand + "it holds a password, which is not printed", changed
	}
	return s.setting("primary_conninfo", changed, false), changed
}

func (s *Site) checkConninfo() {
	info := s.conf("primary_conninfo", "")
	if strings.TrimSpace(info) == "" {
		s.here("conninfo-missing", Critical, "set primary_conninfo by hand, with host, the user that replicates, and application_name="+s.Here, "this node could not follow another primary", "primary_conninfo is not set")
		return
	}
	app, cluster := postgres.ConninfoValue(info, "application_name"), s.conf("cluster_name", "")
	shown, secret := postgres.ShownConninfo(info)
	if app != s.Here && (app != "" || cluster != s.Here) {
		var do string
		do, info = s.conninfo(info, "application_name", s.Here)
		s.here("application-name", Critical, do, "the primary does not find this node among its standbys: no handover to it", "application_name is %q, expected the name of this node, %s (primary_conninfo: %s)", or(app, cluster), s.Here, shown)
	}
	if secret {
		s.here("conninfo-password", Warning, "move it to ~"+s.Inst.Owner.Name+"/.pgpass, mode 0600", "everybody who may read the configuration, or pg_stat_wal_receiver, has it", "primary_conninfo holds a password")
	}
	if postgres.ConninfoValue(info, "tcp_user_timeout") == "" {
		do, _ := s.conninfo(info, "tcp_user_timeout", "3000")
		switch {
		case s.throughAddress(info):
			s.here("tcp-user-timeout", Warning, do, "a connection to the address hangs for two minutes after it has moved", "primary_conninfo leads to the virtual IP and has no tcp_user_timeout")
		case len(postgres.ConninfoHosts(info)) > 1:
			s.here("tcp-user-timeout", Warning, do, "a host that does not answer keeps this standby from the next one for two minutes (connect_timeout does not count here)", "primary_conninfo names several hosts and has no tcp_user_timeout")
		}
	}
	if s.throughAddress(info) {
		if v := s.conf("wal_receiver_status_interval", "10s"); v != "1s" && v != "1" && v != "2s" && v != "2" {
			s.here("status-interval", Warning, s.setting("wal_receiver_status_interval", "1s", false), "a standby that is connected through the virtual IP notices its move when it next sends something", "wal_receiver_status_interval is %s", v)
		}
	}
}

// throughAddress tells whether the standbys connect through a virtual IP.
func (s *Site) throughAddress(info string) bool {
	hosts := strings.Split(postgres.ConninfoValue(info, "host")+","+postgres.ConninfoValue(info, "hostaddr"), ",")
	for _, a := range s.Config.Addresses() {
		if a.IP != "" && slices.Contains(hosts, a.IP) {
			return true
		}
	}
	return false
}

// checkRoom: a standby does not start with less than its primary had.
func (s *Site) checkRoom() {
	for _, limit := range []struct {
		name            string
		built, required int
	}{
		{"max_connections", 100, s.Ctl.MaxConnections},
		{"max_worker_processes", 8, s.Ctl.MaxWorkerProcesses},
		{"max_wal_senders", 10, s.Ctl.MaxWALSenders},
		{"max_prepared_transactions", 0, s.Ctl.MaxPreparedTransactions},
		{"max_locks_per_transaction", 64, s.Ctl.MaxLocksPerTransaction},
	} {
		v, err := strconv.Atoi(s.conf(limit.name, strconv.Itoa(limit.built)))
		if err == nil && v < limit.required {
			s.here("too-low-"+limit.name, Critical, s.setting(limit.name, strconv.Itoa(limit.required), true), "a standby does not start with less than its primary had", "%s is %d, the primary had %d", limit.name, v, limit.required)
		}
	}
	need := len(s.State.Nodes) - 1
	if v, err := strconv.Atoi(s.conf("max_wal_senders", "10")); err == nil && v < need+2 && v >= s.Ctl.MaxWALSenders {
		s.here("walsenders", Warning, s.setting("max_wal_senders", strconv.Itoa(need+8), true), "every other node needs one, a base backup two more", "max_wal_senders is %d, for %d standbys", v, need)
	}
	keep := s.conf("wal_keep_size", "0")
	if (keep == "0" || keep == "0MB") && s.conf("restore_command", "") == "" && s.conf("primary_slot_name", "") == "" {
		s.here("no-retention", Warning, s.setting("wal_keep_size", "1GB", false), "a standby that was away for a while finds no WAL to go on from and must be cloned anew", "there is neither wal_keep_size, nor primary_slot_name, nor restore_command")
	}
}

// checkReach: clients and standbys must reach the server at the virtual IP.
func (s *Site) checkReach() {
	listen := s.conf("listen_addresses", "localhost")
	for _, a := range s.Config.Addresses() {
		list := postgres.SplitList(listen)
		if a.IP == "" || slices.ContainsFunc(list, func(l string) bool {
			l = strings.TrimSpace(l)
			return l == "*" || l == "0.0.0.0" || l == "::" && strings.Contains(a.IP, ":") || l == a.IP
		}) {
			continue
		}
		s.here("listen", Critical, s.setting("listen_addresses", "*", true), "clients reach the address and nobody listens there", "listen_addresses is %q, without the virtual IP %s", listen, a.IP)
		break
	}
}

func (s *Site) checkArchiving() {
	if off(s.conf("archive_mode", "off")) {
		return
	}
	if s.conf("archive_command", "") == "" && s.conf("archive_library", "") == "" {
		s.here("archive-nothing", Critical, s.setting("archive_mode", "off", true), "WAL piles up until the disk is full", "archive_mode is on, and there is neither archive_command nor archive_library")
	}
	switch {
	case s.view == nil:
	case s.view.ArchFails:
		s.here("archive-fails", Critical, s.readLog(), "WAL piles up until the disk is full, and the archive has a hole", "the last archive_command failed, %d files wait", s.view.Unarch)
	case s.view.Unarch > manyFiles:
		s.here("archive-backlog", Warning, s.readLog(), "what is not archived is lost with this node", "%d WAL files wait to be archived", s.view.Unarch)
	}
}

// readLog is the command that shows what the server says.
func (s *Site) readLog() string {
	if dir := s.conf("log_directory", "log"); !off(s.conf("logging_collector", "off")) {
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(s.Inst.DataDir, dir)
		}
		return "tail \"$(ls -td " + ocf.JoinArgs(dir) + "/* | head -n 1)\""
	}
	if _, err := os.Stat(s.serverLog()); err == nil {
		return "tail " + ocf.JoinArgs(s.serverLog())
	}
	// Started before the agent had it.
	return "tail \"$(readlink /proc/$(head -n 1 " + ocf.JoinArgs(filepath.Join(s.Inst.DataDir, "postmaster.pid")) + ")/fd/2)\""
}

// checkSystem looks at what the operating system does behind Pacemaker's back.
func (s *Site) checkSystem() {
	at := func(path string) string { return filepath.Join(s.Root, path) }
	enabled, _ := filepath.Glob(at("/etc/systemd/system/*.wants/postgresql*.service"))
	instances, _ := filepath.Glob(at("/etc/systemd/system/*.wants/postgresql@*.service"))
	units := map[string]bool{}
	for _, path := range append(enabled, instances...) {
		units[strings.TrimSuffix(filepath.Base(path), ".service")] = true
	}
	for unit := range units {
		s.here("systemd-unit", Critical, "systemctl disable "+unit, "the server is started at boot behind Pacemaker's back: two primaries after a failover", "systemd starts %s", unit)
	}
	starts, _ := filepath.Glob(at("/etc/postgresql/*/*/start.conf"))
	for _, path := range starts {
		for _, line := range lines(path) {
			if line == "auto" && sameDir(filepath.Dir(path), s.Inst) {
				s.here("start-conf", Warning, "echo disabled > "+strings.TrimPrefix(path, s.Root), "pg_ctlcluster and systemd start the server behind Pacemaker's back", "%s says auto", path)
			}
		}
	}
	if s.Inst.Owner.UID >= 1000 {
		remove := true // systemd's own default
		for _, path := range confFiles(s.Root, "/etc/systemd/logind.conf") {
			for _, line := range lines(path) {
				if v, ok := strings.CutPrefix(line, "RemoveIPC="); ok {
					remove = isTrue(v)
				}
			}
		}
		if _, err := os.Stat(at("/run/systemd/system")); err == nil && remove {
			s.here("remove-ipc", Warning, "mkdir -p /etc/systemd/logind.conf.d && printf '[Login]\\nRemoveIPC=no\\n' > /etc/systemd/logind.conf.d/pgbaton.conf && systemctl kill --signal HUP systemd-logind",
				"when that user logs out, systemd removes the server's shared memory", "RemoveIPC is on, and %s is no system user", s.Inst.Owner.Name)
		}
	}
	s.checkOOM(at)
	s.checkCorosync()
}

func (s *Site) checkOOM(at func(string) string) {
	if _, err := os.Stat(at("/run/systemd/system")); err != nil {
		return
	}
	for _, path := range confFiles(s.Root, "/etc/systemd/system/pacemaker.service") {
		for _, line := range lines(path) {
			if line == "OOMPolicy=continue" {
				return
			}
		}
	}
	s.here("oom-policy", Warning, "mkdir -p /etc/systemd/system/pacemaker.service.d && printf '[Service]\\nOOMPolicy=continue\\n' > /etc/systemd/system/pacemaker.service.d/pgbaton.conf && systemctl daemon-reload",
		"when the kernel kills one backend for want of memory, systemd stops Pacemaker with all of its cgroup", "pacemaker.service has no OOMPolicy=continue")
}

func (s *Site) checkCorosync() {
	set := map[string]string{}
	for _, line := range lines(filepath.Join(s.Root, "/etc/corosync/corosync.conf")) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			set[strings.TrimSpace(name)] = strings.TrimSpace(value)
		}
	}
	if len(s.State.Nodes) != 2 || len(set) == 0 {
		return
	}
	if set["two_node"] != "1" && set["model"] == "" {
		s.here("two-node", Critical, "sed -i 's/provider: corosync_votequorum/&\\n  two_node: 1/' /etc/corosync/corosync.conf && corosync-cfgtool -R",
			"when one of two nodes is gone the other has no quorum and promotes nothing", "corosync.conf has neither two_node nor a quorum device, for two nodes")
	}
	if set["two_node"] == "1" && set["wait_for_all"] == "0" {
		s.here("wait-for-all", Critical, "sed -i 's/wait_for_all: 0/wait_for_all: 1/' /etc/corosync/corosync.conf && corosync-cfgtool -R",
			"after a start each of the two alone fences the other", "wait_for_all is 0, for two nodes")
	}
}

// lines are those of a file, without comments and the space around them; none if it cannot be read.
func lines(path string) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	var list []string
	for in := bufio.NewScanner(f); in.Scan(); {
		line, _, _ := strings.Cut(in.Text(), "#")
		if line = strings.TrimSpace(line); line != "" {
			list = append(list, line)
		}
	}
	return list
}

// confFiles are a file of systemd's and its drop-ins, those that win last.
func confFiles(root, path string) []string {
	drop, _ := filepath.Glob(filepath.Join(root, path+".d", "*.conf"))
	return append([]string{filepath.Join(root, path)}, drop...)
}

// sameDir tells whether a directory below /etc/postgresql is this instance's.
func sameDir(dir string, i *postgres.Instance) bool {
	if dir == i.ConfigDir {
		return true
	}
	for _, line := range lines(filepath.Join(dir, "postgresql.conf")) {
		if strings.HasPrefix(line, "data_directory") && strings.Contains(line, i.DataDir) {
			return true
		}
	}
	return false
}
