package postgres

import (
	"os"
	"path/filepath"
	"strings"
)

// Settings reads the parameters that the configuration sets, the last one winning, without starting anything:
// postgresql.conf with what it includes, then postgresql.auto.conf, then the command line (documentation, "Setting
// Parameters"). Names are in lower case. What cannot be read is left out.
func (i *Instance) Settings() map[string]string {
	conf := map[string]string{}
	readConf(i.ConfigFile(), conf, 0)
	readConf(filepath.Join(i.DataDir, "postgresql.auto.conf"), conf, 0)
	for name, value := range argSettings(i.StartArgs) {
		conf[name] = value
	}
	return conf
}

// ConfigFile is the path of postgresql.conf: config_file of the command line, else in the directory that the server
// gets as -D.
func (i *Instance) ConfigFile() string {
	if f := argSettings(i.StartArgs)["config_file"]; f != "" {
		if filepath.IsAbs(f) {
			return f
		}
		return filepath.Join(i.DataDir, f) // the agent starts the server there
	}
	return filepath.Join(i.ConfigDir, "postgresql.conf")
}

// ConfiguredDataDir finds the data directory of an instance whose DataDir is not known: the directory that the server
// gets as -D if that is one, else what data_directory in its configuration says, as in Debian's layout. It falls back
// to the former.
func (i *Instance) ConfiguredDataDir() string {
	if _, err := os.Stat(filepath.Join(i.ConfigDir, "PG_VERSION")); err == nil {
		return i.ConfigDir
	}
	if dir := i.configuredDataDir(); dir != "" {
		return dir
	}
	return i.ConfigDir
}

// configuredDataDir is what data_directory says, "" if it is not set or not absolute.
func (i *Instance) configuredDataDir() string {
	conf := map[string]string{}
	readConf(i.ConfigFile(), conf, 0)
	dir := conf["data_directory"]
	if d, ok := argSettings(i.StartArgs)["data_directory"]; ok {
		dir = d
	}
	if !filepath.IsAbs(dir) {
		return ""
	}
	return filepath.Clean(dir)
}

// argSettings picks the configuration parameters out of a server's command line: -c name=value, -cname=value and
// --name=value, with dashes for underscores if one likes (PostmasterMain and ParseLongOption).
func argSettings(args []string) map[string]string {
	found := map[string]string{}
	for n := 0; n < len(args); n++ {
		arg := args[n]
		switch {
		case arg == "-c" && n+1 < len(args):
			n++
			arg = args[n]
		case strings.HasPrefix(arg, "--"):
			arg = arg[2:]
		case strings.HasPrefix(arg, "-c"):
			arg = arg[2:]
		default:
			continue
		}
		if name, value, ok := strings.Cut(arg, "="); ok {
			found[strings.ToLower(strings.ReplaceAll(name, "-", "_"))] = value
		}
	}
	return found
}

// maxIncludes is how deep includes may nest (CONF_FILE_MAX_DEPTH in src/include/utils/conffiles.h).
const maxIncludes = 10

func readConf(path string, conf map[string]string, depth int) {
	data, err := os.ReadFile(path)
	if err != nil || depth > maxIncludes {
		return
	}
	for line := range strings.Lines(string(data)) {
		name, value, ok := parseConfLine(line)
		if !ok {
			continue
		}
		if !filepath.IsAbs(value) && strings.HasPrefix(name, "include") {
			value = filepath.Join(filepath.Dir(path), value)
		}
		switch name {
		case "include", "include_if_exists":
			readConf(value, conf, depth+1)
		case "include_dir":
			list, _ := os.ReadDir(value) // by name
			for _, f := range list {
				if strings.HasSuffix(f.Name(), ".conf") && !strings.HasPrefix(f.Name(), ".") && !f.IsDir() {
					readConf(filepath.Join(value, f.Name()), conf, depth+1)
				}
			}
		default:
			conf[name] = value
		}
	}
}

// parseConfLine reads `name = value`, `name value` or `name = 'it”s quoted'`, with a comment behind.
func parseConfLine(line string) (name, value string, ok bool) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' {
		return "", "", false
	}
	n := strings.IndexAny(line, " \t=")
	if n < 0 {
		return "", "", false
	}
	name = strings.ToLower(line[:n])
	rest := strings.TrimLeft(line[n:], " \t")
	rest = strings.TrimLeft(strings.TrimPrefix(rest, "="), " \t")
	if !strings.HasPrefix(rest, "'") {
		rest, _, _ = strings.Cut(rest, "#")
		return name, strings.TrimSpace(rest), true
	}
	var b strings.Builder
	for n := 1; n < len(rest); n++ {
		switch c := rest[n]; {
		case c == '\'' && n+1 < len(rest) && rest[n+1] == '\'':
			n++
			b.WriteByte(c)
		case c == '\\' && n+1 < len(rest):
			char, width := unescape(rest[n+1:])
			b.WriteByte(char)
			n += width
		case c == '\'':
			return name, b.String(), true
		default:
			b.WriteByte(c)
		}
	}
	return "", "", false // no closing quote: the server would refuse it too
}

// unescape reads what stands behind a backslash in a quoted value, and how many bytes of it that takes
// (DeescapeQuotedString in src/backend/utils/misc/guc-file.l).
func unescape(s string) (char byte, width int) {
	switch s[0] {
	case 'b':
		return '\b', 1
	case 'f':
		return '\f', 1
	case 'n':
		return '\n', 1
	case 'r':
		return '\r', 1
	case 't':
		return '\t', 1
	}
	for width < 3 && width < len(s) && s[width] >= '0' && s[width] <= '7' {
		char = char<<3 | (s[width] - '0')
		width++
	}
	if width == 0 {
		return s[0], 1
	}
	return char, width
}
