package pacemaker_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/pgbaton/pgbaton/internal/pacemaker"
)

// script answers each command from a list, and keeps what was asked. It stands for
// versions of Pacemaker that are not on this machine; the installed one is tested
// on a real cluster, in e2e.
type script struct {
	answers []answer
	asked   []string
}

type answer struct {
	stdout string
	status int
}

func (s *script) Run(_ context.Context, argv ...string) ([]byte, error) {
	s.asked = append(s.asked, strings.Join(argv, " "))
	a := s.answers[0]
	s.answers = s.answers[1:]
	if a.status != 0 {
		return []byte(a.stdout), &pacemaker.RunError{Argv: argv, Status: a.status}
	}
	return []byte(a.stdout), nil
}

const queryXML = `<pacemaker-result api-version="2.25" request="attrd_updater">
  <attribute name="note" value="a=&quot;1&quot; &lt;{b}|c&gt; &amp; 'd'" host="n1"/>
  <attribute name="note" value="" host="n2"/>
  <attribute name="note" value="x" host="n10"/>
  <status code="0" message="OK"/>
</pacemaker-result>`

// Ensure all values are read, whatever form this version of attrd_updater uses.
func TestAttrd_QueryAll(t *testing.T) {
	awkward := `a="1" <{b}|c> & 'd'`
	for _, tt := range []struct {
		name    string
		answers []answer
		want    map[string]string
		err     string
	}{
		{"xml", []answer{{queryXML, 0}}, map[string]string{"n1": awkward, "n10": "x"}, ""},
		{"text of 2.0", []answer{{"", 64}, {`name="note" host="n1" value="` + awkward + "\"\n" + `name="note" host="n2" value=""` + "\n" + `name="note" host="n10" value="x"` + "\n", 0}}, map[string]string{"n1": awkward, "n10": "x"}, ""},
		{"text with a value that looks like a line's end", []answer{{"", 64}, {`name="note" host="n1" value="x" value="y"` + "\n", 0}}, map[string]string{"n1": `x" value="y`}, ""},
		{"unknown name, 2.0", []answer{{"", 64}, {"", 105}}, map[string]string{}, ""},
		{"unknown name, 2.1", []answer{{`<pacemaker-result/>`, 78}}, map[string]string{}, ""},
		{"attrd does not run", []answer{{"", 107}}, nil, "exit status 107"},
		{"not XML", []answer{{"what?", 0}}, nil, "not XML"},
		{"another form", []answer{{"", 64}, {"n1: x\n", 0}}, nil, `expected name="note"`},
		{"another name", []answer{{"", 64}, {`name="node" host="n1" value="x"` + "\n", 0}}, nil, `expected name="note"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &script{answers: tt.answers}
			got, err := pacemaker.NewAttrd(s).QueryAll(t.Context(), "note")
			switch {
			case tt.err == "" && err != nil:
				t.Fatal(err)
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
				t.Fatalf("error %v, want one with %q", err, tt.err)
			case !maps.Equal(got, tt.want):
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if tt.err == "" && got == nil {
				t.Error("the map is nil")
			}
			if len(s.answers) != 0 {
				t.Errorf("%d answers not asked for; asked %q", len(s.answers), s.asked)
			}
		})
	}
}

// Ensure an attrd_updater without XML is asked for it once only.
func TestAttrd_QueryAll_RemembersText(t *testing.T) {
	line := "name=\"note\" host=\"n1\" value=\"x\"\n"
	s := &script{answers: []answer{{"", 64}, {line, 0}, {line, 0}}}
	a := pacemaker.NewAttrd(s)
	for range 2 {
		if _, err := a.QueryAll(t.Context(), "note"); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"attrd_updater --name=note --query --all --output-as=xml",
		"attrd_updater --name=note --query --all",
		"attrd_updater --name=note --query --all",
	}
	if !slices.Equal(s.asked, want) {
		t.Errorf("asked %q, want %q", s.asked, want)
	}
}

// Ensure what attrd would change or lose is refused before it is sent.
func TestAttrd_SetPrivate_Refuses(t *testing.T) {
	for _, tt := range []struct{ name, value, want string }{
		{"", "x", "attribute name"},
		{"a b", "x", "attribute name"},
		{"a\"b", "x", "attribute name"},
		{"note", "", "delete it instead"},
		{"note", "Köln", "printable ASCII"},
		{"note", "a\nb", "printable ASCII"},
		{"note", "value++", "addition"},
		{"note", "value+=1", "addition"},
		{"note", "A/3b9++x=", "addition"}, // base64 can hold it
	} {
		s := &script{}
		err := pacemaker.NewAttrd(s).SetPrivate(t.Context(), tt.name, tt.value)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q=%q: error %v, want one with %q", tt.name, tt.value, err, tt.want)
		}
	}
}

// Ensure a value that begins with a dash stays a value.
func TestAttrd_Commands(t *testing.T) {
	s := &script{answers: make([]answer, 5)}
	a := pacemaker.NewAttrd(s)
	ctx := t.Context()
	for _, err := range []error{
		a.SetPrivate(ctx, "note", "-x y+="),
		a.Delete(ctx, "note"),
		a.SetScore(ctx, "", "pgsqld", pacemaker.NegInfinity),
		a.SetScore(ctx, "n2", "pgsqld", 1001),
		a.DeleteScore(ctx, "n2", "pgsqld"),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	want := []string{
		"attrd_updater --private --name=note --update=-x y+=",
		"attrd_updater --name=note --delete",
		"attrd_updater --name=master-pgsqld --update=-INFINITY",
		"attrd_updater --name=master-pgsqld --update=1001 --node=n2",
		"attrd_updater --name=master-pgsqld --delete --node=n2",
	}
	if !slices.Equal(s.asked, want) {
		t.Errorf("asked %q, want %q", s.asked, want)
	}
}

// Ensure one unreadable score does not hide the others.
func TestAttrd_Scores(t *testing.T) {
	s := &script{answers: []answer{{`<pacemaker-result><attribute value="-INFINITY" host="n1"/><attribute value="many" host="n2"/><attribute value="1001" host="n3"/></pacemaker-result>`, 0}}}
	got, err := pacemaker.NewAttrd(s).Scores(t.Context(), "pgsqld")
	if err == nil || !strings.Contains(err.Error(), "n2") {
		t.Errorf("error %v, want one that names n2", err)
	}
	if want := map[string]pacemaker.Score{"n1": pacemaker.NegInfinity, "n3": 1001}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestParseScore(t *testing.T) {
	for s, want := range map[string]pacemaker.Score{
		"0": 0, "-1": -1, "1001": 1001, " 5 ": 5, "INFINITY": pacemaker.Infinity, "+INFINITY": pacemaker.Infinity,
		"-INFINITY": pacemaker.NegInfinity, "-infinity": pacemaker.NegInfinity, "1000000": pacemaker.Infinity,
		"99999999999": pacemaker.Infinity, "-99999999999": pacemaker.NegInfinity,
	} {
		got, err := pacemaker.ParseScore(s)
		if err != nil || got != want {
			t.Errorf("%q: got %v, %v; want %v", s, got, err, want)
		}
		if back, err := pacemaker.ParseScore(got.String()); err != nil || back != got {
			t.Errorf("%v: written and read it is %v, %v", got, back, err)
		}
	}
	for _, s := range []string{"", "x", "1.5", "--1", "INF"} {
		if got, err := pacemaker.ParseScore(s); err == nil {
			t.Errorf("%q: got %v, want an error", s, got)
		}
	}
}
