package pacemaker

import (
	"encoding/xml"
	"iter"
	"slices"
	"strings"
)

// element is any XML element. Pacemaker adds attributes and elements with each
// version; those that nobody asks for do no harm.
type element struct {
	XMLName  xml.Name
	Attrs    []xml.Attr `xml:",any,attr"`
	Children []element  `xml:",any"`
}

func parseXML(b []byte) (element, error) {
	var e element
	err := xml.Unmarshal(b, &e)
	return e, err
}

func (e element) name() string { return e.XMLName.Local }

// attr returns the attribute name, empty if there is none.
func (e element) attr(name string) string {
	for _, a := range e.Attrs {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

// isSet tells whether the attribute name is one of Pacemaker's words for true.
func (e element) isSet(name string) bool {
	switch strings.ToLower(e.attr(name)) {
	case "true", "on", "yes", "y", "1":
		return true
	}
	return false
}

// child returns the first child with that name, an empty element if there is none.
func (e element) child(name string) element {
	for _, c := range e.Children {
		if c.name() == name {
			return c
		}
	}
	return element{}
}

// all walks e and everything below it, in document order, and yields the elements
// with one of the names.
func (e element) all(names ...string) iter.Seq[element] {
	return func(yield func(element) bool) { e.walk(names, yield) }
}

func (e element) walk(names []string, yield func(element) bool) bool {
	if slices.Contains(names, e.name()) && !yield(e) {
		return false
	}
	for _, c := range e.Children {
		if !c.walk(names, yield) {
			return false
		}
	}
	return true
}
