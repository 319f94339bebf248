package lab

import (
	"strings"
	"testing"
)

func TestWriteResults(t *testing.T) {
	const results = `{"scenario":"TestFailure/41_node_power_off","passed":true,"outages_ms":[5200],"acknowledged":900,"lost":2,"fenced":["n1"],"healed":false}
{"scenario":"TestFailure/33_postmaster_killed","passed":true,"outages_ms":[300,200,700],"acknowledged":900,"lost":0,"healed":true}
{"scenario":"TestFailure/33_postmaster_killed","passed":false,"outages_ms":[2600],"acknowledged":900,"lost":0,"healed":true}
`
	const want = `scenario                             runs pass  median   worst  lost two off self
Failure/33_postmaster_killed            2    1  500 ms 2600 ms     0   0   0    2
Failure/41_node_power_off               1    1 5200 ms 5200 ms     2   0   1    0
`
	var b strings.Builder
	if err := WriteResults(&b, strings.NewReader(results)); err != nil {
		t.Fatal(err)
	}
	if got := b.String(); !strings.HasPrefix(got, want) {
		t.Errorf("got\n%s\nexpected\n%s", got, want)
	}
	if err := WriteResults(&b, strings.NewReader("{")); err == nil || !strings.Contains(err.Error(), `result "{"`) {
		t.Errorf("a line that is cut off: %v", err)
	}
}
