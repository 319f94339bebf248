// Package ocf is the contract between a cluster manager and a resource agent:
// how an action is called (environment and argument), how it answers (exit code
// and exit reason), and how the agent describes itself (meta-data).
//
// The rules are those of the Open Cluster Framework's resource agent API 1.1 and
// of "Pacemaker Administration", chapter "Resource Agents". Nothing here reads a
// file, except [FindBinDir], and nothing waits.
package ocf
