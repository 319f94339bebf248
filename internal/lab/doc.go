// Package lab runs a real PostgreSQL cluster under Corosync and Pacemaker on one
// machine: every node is a set of Linux namespaces (network, mount, pid, ipc, uts)
// with a root file system of its own, a power switch outside it is the fencing
// device, and a bridge in a namespace of its own is the network. Nothing is mocked,
// and nothing of the host is changed: the nodes see the host's / through an overlay.
// (With Disks, data directories are mounted below the lab's directory until it is taken
// down.)
//
// # Processes
//
//	host                 pgbaton-lab, a test: this package's API
//	 └ supervisor        init of an outer pid, mount and net namespace: the bridge, the
//	   │                 power switch, the firewall between the nodes
//	   ├ n1              tini -s, init of the node's namespaces
//	   │  └ node         starts corosync -f and pacemakerd -f, as systemd would
//	   ├ n2, n3 ...
//	   └ client          no cluster software: where the writing clients come from
//
// The supervisor outlives the program that started it. As it is the init of a pid
// namespace that holds all the rest, nothing survives it, not even its SIGKILL.
//
// A program that uses this package calls [RunHelper] first thing in main (a test in
// TestMain): the supervisor, the nodes and the fence agent are that same program,
// executed again.
//
// # Files
//
// All state is in one directory, /var/lib/pgbaton-lab/NAME by default, on a real
// disk: fsync is real. What a node keeps over a loss of power is below nodes/NODE:
// data (PostgreSQL's), log (/var/log), lib (/var/lib/pgbaton), pacemaker, corosync,
// and root (everything else that the node wrote). /run, /tmp and /dev/shm are lost.
package lab
