package pacemaker

import "fmt"

// ParseMetadata reads what an agent says of itself: the default of each parameter, by its name.
func ParseMetadata(text []byte) (map[string]string, error) {
	root, err := parseXML(text)
	if err != nil {
		return nil, fmt.Errorf("not XML: %w", err)
	}
	if root.name() != "resource-agent" {
		return nil, fmt.Errorf("<%s>: expected <resource-agent>", root.name())
	}
	params := map[string]string{}
	for p := range root.child("parameters").all("parameter") {
		params[p.attr("name")] = p.child("content").attr("default")
	}
	return params, nil
}
