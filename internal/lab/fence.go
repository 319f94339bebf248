package lab

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"
)

const switchSocket = "/run/pgbaton-lab/switch/power.sock"

const fenceMetadata = `<?xml version="1.0"?>
<resource-agent name="` + fenceName + `" shortdesc="Power switch of the lab">
<longdesc>Cuts the power of a node of the lab: its init is killed, and with it everything in the node. After "reboot" the node stays off, unless the lab was made with an automatic return.</longdesc>
<vendor-url>https://github.com/pgbaton/pgbaton</vendor-url>
<parameters>
<parameter name="action" unique="0" required="1"><content type="string" default="reboot"/><shortdesc lang="en">Fencing action</shortdesc></parameter>
<parameter name="plug" unique="0" required="0"><content type="string"/><shortdesc lang="en">Node</shortdesc></parameter>
</parameters>
<actions>
<action name="on" automatic="0"/>
<action name="off"/>
<action name="reboot"/>
<action name="status"/>
<action name="monitor"/>
<action name="list"/>
<action name="metadata"/>
</actions>
</resource-agent>
`

// runFence is the fence agent inside a node: name=value lines on standard input, as
// Pacemaker sends them, and the power switch outside does the work.
func runFence(in io.Reader, out io.Writer) error {
	args := map[string]string{}
	if len(os.Args) > 2 && os.Args[1] == "-o" {
		args["action"] = os.Args[2]
	} else {
		sc := bufio.NewScanner(in)
		for sc.Scan() {
			if name, value, ok := strings.Cut(strings.TrimSpace(sc.Text()), "="); ok {
				args[name] = value
			}
		}
	}
	node := args["plug"]
	if node == "" {
		node = args["nodename"]
	}
	switch action := args["action"]; action {
	case "metadata":
		_, err := io.WriteString(out, fenceMetadata)
		return err
	case "monitor", "list", "status":
		r, err := ask(switchSocket, request{Op: "state"})
		if err != nil {
			return err
		}
		on := slices.Collect(func(yield func(string) bool) {
			for n := range r.Inits {
				if !yield(n) {
					return
				}
			}
		})
		if action == "list" {
			_, err = fmt.Fprintln(out, strings.Join(on, "\n"))
		}
		if action == "status" && !slices.Contains(on, node) {
			os.Exit(2) // a fence agent's word for "off"
		}
		return err
	case "on", "off", "reboot":
		_, err := ask(switchSocket, request{Op: action, Node: node})
		return err
	default:
		return fmt.Errorf("unknown action %q", action)
	}
}

// ask sends one request to the supervisor and returns its answer.
func ask(socket string, req request) (reply, error) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return reply{}, err
	}
	defer c.Close()
	// Longer than the longest answer takes, which is a shutdown's.
	if err := c.SetDeadline(time.Now().Add(shutdownLimit + 20*time.Second)); err != nil {
		return reply{}, err
	}
	if err := json.NewEncoder(c).Encode(req); err != nil {
		return reply{}, err
	}
	var r reply
	if err := json.NewDecoder(c).Decode(&r); err != nil {
		return reply{}, fmt.Errorf("the lab's supervisor did not answer %q: %w", req.Op, err)
	}
	if r.Error != "" {
		return r, fmt.Errorf("%s %s: %s", req.Op, req.Node, r.Error)
	}
	return r, nil
}
