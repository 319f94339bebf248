package console

import (
	"slices"
	"strings"
	"testing"
)

// Ensure a pause does not stop Pacemaker in the middle of a change of roles, when no action of an instance shows it: between a demote
// and a promote. And that one without a primary is not said to serve on.
func TestPause(t *testing.T) {
	for _, tc := range []struct {
		name     string
		replace  map[string]string
		code     ExitCode
		says     string
		maintain bool
	}{
		{"at rest", nil, 0, "PostgreSQL serves on", true},
		{"no primary", map[string]string{`role="Promoted"`: `role="Unpromoted"`}, 0, "There is no primary", true},
		{"the coordinator is at work", map[string]string{"S_IDLE": "S_TRANSITION_ENGINE"}, Refused, "the coordinator n2 is at work", false},
		{"a switchover is under way", map[string]string{`</constraints>`: `<rsc_location id="cli-prefer-pgsql-ha" rsc="pgsql-ha" role="Promoted"><rule id="pgbaton-move-n3-ab12cd34" score="INFINITY"><expression id="e" attribute="#uname" operation="eq" value="n2"/><date_expression id="d" operation="lt" end="2099-01-01 00:00:00Z"/></rule></rsc_location></constraints>`}, Refused, "begun on n3", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w, r := replay(t, "healthy")
			r.replace = tc.replace
			var out strings.Builder
			err := w.Pause(t.Context(), "", &out)
			text := out.String()
			if err != nil {
				text += err.Error()
			}
			if CodeOf(err) != tc.code || !strings.Contains(text, tc.says) {
				t.Errorf("exit code %d, %q; expected %d and %q", CodeOf(err), text, tc.code, tc.says)
			}
			if got := slices.ContainsFunc(r.changes, func(c string) bool { return strings.Contains(c, "maintenance") }); got != tc.maintain {
				t.Errorf("changed %q, expected maintenance: %t", r.changes, tc.maintain)
			}
		})
	}
}

// Ensure no order to lose something is left where nobody acts on it, to be found by a later failure.
func TestPrepareOrder_Void(t *testing.T) {
	for says, replace := range map[string]map[string]string{
		"nobody would act on the order":      {`role="Promoted"`: `role="Unpromoted"`, `maintenance-mode="false"`: `maintenance-mode="true"`},
		"no quorum":                          {`role="Promoted"`: `role="Unpromoted"`, `with_quorum="true"`: `with_quorum="false"`},
		"stop-all-resources is set":          {`role="Promoted"`: `role="Unpromoted"`, `stop-all-resources="false"`: `stop-all-resources="true"`},
		"is blocked or not managed":          {`role="Promoted"`: `role="Unpromoted"`, `blocked="false"`: `blocked="true"`},
		"no instance of pgsql-ha runs on n2": {`role="Promoted"`: `role="Unpromoted"`, `<node name="n2" id="2" cached="true"/>`: `<node name="n9" id="9" cached="true"/>`},
		"it is maintenance":                  {`role="Promoted"`: `role="Unpromoted"`, `name="n2" id="2" online="true" standby="false" standby_onfail="false" maintenance="false"`: `name="n2" id="2" online="true" standby="false" standby_onfail="false" maintenance="true"`},
		"a constraint keeps the role off n2: by-hand": {
			`role="Promoted"`: `role="Unpromoted"`,
			`</constraints>`:  `<rsc_location id="by-hand" rsc="pgsql-ha" role="Master" node="n2" score="-INFINITY"/></constraints>`,
		},
	} {
		w, r := replay(t, "healthy")
		r.replace = replace
		if _, err := w.PrepareOrder(t.Context(), "", "n2"); CodeOf(err) != Refused || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, expected a refusal that says %q", err, says)
		}
	}
	w, r := replay(t, "healthy")
	r.replace = map[string]string{`role="Promoted"`: `role="Unpromoted"`}
	if _, err := w.PrepareOrder(t.Context(), "", "n2"); err != nil {
		t.Errorf("without a primary: %v", err)
	}
}
