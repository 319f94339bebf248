package console

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/postgres"
)

var situations = []string{"healthy", "healthy-n2", "after", "refused", "moved", "standby", "offline", "maintenance"}

// Ensure the status of clusters in all kinds of trouble says what is wrong, what to do and who could take over, in 80
// columns.
func TestStatus(t *testing.T) {
	var all bytes.Buffer
	for _, name := range situations {
		w, _ := replay(t, name)
		st, err := w.ReadStatus(t.Context(), "")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if healthy := strings.HasPrefix(name, "healthy") || name == "after"; st.Healthy() != healthy {
			t.Errorf("%s: healthy is %v", name, st.Healthy())
		}
		st.Time = time.Date(2026, 11, 25, 4, 0, 0, 0, time.Local)
		all.WriteString("--- " + name + "\n")
		st.Text(&all, Style{})
		all.WriteString("\n")
	}
	goldenPage(t, "status", all.String())
}

// Ensure the JSON form says its version, has every list, never null in the place of one, and is what docs/command.md
// shows.
func TestStatus_JSON(t *testing.T) {
	w, _ := replay(t, "healthy-n2")
	st, err := w.ReadStatus(t.Context(), "pgsql-ha")
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), "null") {
		t.Errorf("a null in\n%s", b)
	}
	goldenPage(t, "status.json", string(b)+"\n")
}

// Ensure the server of this node is asked with the parameters of the resource, and wins over what was published.
func TestTake_Local(t *testing.T) {
	w, _ := replay(t, "healthy")
	w.Ask = func(_ context.Context, params map[string]string) (postgres.Overview, error) {
		if params["pgdata"] != "/var/lib/pgha/data" {
			t.Errorf("asked with %v", params)
		}
		return postgres.Overview{Primary: true, Timeline: 9, LSN: "9/9", Standbys: []postgres.StandbyOverview{{Name: "n2", State: "catchup", Unflush: 1 << 30, Unreplay: 1 << 30}}}, nil
	}
	snap, err := w.Take(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	st := snap.Status()
	if n := st.Nodes[0]; n.Timeline != 9 || n.LSN != "9/9" || *n.Age != 0 {
		t.Errorf("n1: got %+v, want what its server said", n)
	}
	if n := st.Nodes[1]; n.Server != "catchup" || *n.Lag != 1<<30 {
		t.Errorf("n2: got %+v, want what the primary said", n)
	}
	if n := st.Nodes[2]; n.Server != "does not stream" {
		t.Errorf("n3: got %+v, want what the primary said: it knows of no n3", n)
	}
	if st.Handover.Possible {
		t.Errorf("handover: got %+v, want none: nobody is close", st.Handover)
	}
}

// onNode is a recorded moment as another node sees it.
type onNode struct {
	*recorded
	node string
}

func (o onNode) Run(ctx context.Context, argv ...string) ([]byte, error) {
	if argv[0] == "crm_node" {
		return []byte(o.node + "\n"), nil
	}
	return o.recorded.Run(ctx, argv...)
}

// Ensure no lag is told that the primary saw before a pause, as if it were now.
func TestStatus_OldLag(t *testing.T) {
	for hour, want := range map[string]bool{"03": true, "01": false} { // the hour in which the views were published
		w, r := replay(t, "healthy")
		r.replace = map[string]string{"2026-11-25T03:": "2026-11-25T" + hour + ":"}
		w.Run = onNode{r, "n2"}
		w.Ask = func(context.Context, map[string]string) (postgres.Overview, error) {
			return postgres.Overview{Timeline: 2, LSN: "0/2000000"}, nil // does not stream
		}
		st, err := w.ReadStatus(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range st.Nodes[1:] {
			if (n.Lag != nil) != want || (n.LagTime != nil) != want || (n.Sync != "") != want {
				t.Errorf("views of %s hours: %s: got %+v, want a lag: %v", hour, n.Name, n, want)
			}
		}
		if n := st.Nodes[1]; n.Age == nil || *n.Age != 0 || n.LSN != "0/2000000" {
			t.Errorf("n2: got %+v, want what its server said now", n)
		}
	}
}

// Ensure a failed action of the virtual IP is not told as one of PostgreSQL, and hides no fail count of it.
func TestStatus_FailureOfAnother(t *testing.T) {
	w, r := replay(t, "healthy")
	r.replace = map[string]string{"pgsqld": "pgsql", "<node_history>": `<failures><failure op_key="pgsql-vip_monitor_10000" node="n1" exitstatus="not running"/></failures><node_history>`}
	st, err := w.ReadStatus(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if len(st.Problems) > 0 || !st.Handover.Possible {
		t.Errorf("got the problems %+v and the handover %+v", st.Problems, st.Handover)
	}
	r.replace[`<node_history>`] += `<node name="n1"><resource_history id="pgsql" fail-count="2"/></node>`
	if st, err = w.ReadStatus(t.Context(), ""); err != nil || len(st.Problems) != 1 || !strings.Contains(st.Problems[0].Text, "fail count of pgsql on n1 is 2") {
		t.Errorf("got the problems %+v (%v), want the fail count", st.Problems, err)
	}
}

// Ensure a primary that published before its standbys had come back to it does not make them look lost.
func TestStanding(t *testing.T) {
	w, _ := replay(t, "healthy-n2")
	snap, err := w.Take(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	at := func(node string, d time.Duration, change func(*postgres.Overview)) {
		v := snap.Views[node]
		v.At = snap.Taken.Add(d)
		change(&v.Overview)
		snap.Views[node] = v
	}
	alone := func(o *postgres.Overview) { o.Standbys = nil }
	streams := func(o *postgres.Overview) { o.Streaming = true }
	lost := func(o *postgres.Overview) { o.Streaming = false }

	at("n1", -time.Second, alone)
	at("n3", -2*time.Second, streams)
	if st := snap.Standing("n3"); st.Known {
		t.Errorf("the primary's later word against n3's: got %+v, want unknown", st)
	}
	at("n3", -2*time.Second, lost)
	if st := snap.Standing("n3"); !st.Known || st.State != "" {
		t.Errorf("both say that it does not stream: got %+v", st)
	}
	at("n3", 0, streams)
	if st := snap.Standing("n3"); !st.Known || st.State != "streaming" || st.By != "n3" {
		t.Errorf("n3's later word: got %+v", st)
	}
	at("n3", -time.Hour, streams)
	at("n1", -time.Hour, alone)
	if st := snap.Standing("n3"); st.Known {
		t.Errorf("an hour old: got %+v, want unknown", st)
	}
}
