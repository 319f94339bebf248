package main

import (
	"fmt"
	"strings"

	"github.com/alecthomas/kong"
)

type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

// Help is shown by --help.
func (completionCmd) Help() string {
	return `  pgbaton completion bash > /etc/bash_completion.d/pgbaton
  pgbaton completion zsh  > /usr/share/zsh/vendor-completions/_pgbaton
  pgbaton completion fish > /etc/fish/completions/pgbaton.fish`
}

// Run writes a script that knows the commands and flags of this release. Names of nodes come from crm_node.
func (c completionCmd) Run(k *kong.Kong) error {
	commands := map[string][]string{}
	var names []string
	for _, n := range k.Model.Children {
		names = append(names, n.Name)
		for _, group := range n.AllFlags(true) {
			for _, f := range group {
				commands[n.Name] = append(commands[n.Name], "--"+f.Name)
				if f.Short != 0 {
					commands[n.Name] = append(commands[n.Name], "-"+string(f.Short))
				}
			}
		}
	}
	const nodes = `crm_node --list 2>/dev/null | awk '{print $2}'`
	if c.Shell == "fish" {
		fmt.Println("complete -c pgbaton -f")
		for _, n := range k.Model.Children {
			fmt.Printf("complete -c pgbaton -n __fish_use_subcommand -a %s -d '%s'\n", n.Name, strings.ReplaceAll(n.Help, "'", `\'`))
			for _, f := range commands[n.Name] {
				if long, ok := strings.CutPrefix(f, "--"); ok {
					fmt.Printf("complete -c pgbaton -n '__fish_seen_subcommand_from %s' -l %s\n", n.Name, long)
				}
			}
		}
		fmt.Printf("complete -c pgbaton -n '__fish_seen_subcommand_from switchover' -l to -x -a \"(%s)\"\n", strings.ReplaceAll(nodes, "$", `\$`))
		fmt.Printf("complete -c pgbaton -n '__fish_seen_subcommand_from promote' -a \"(%s)\"\n", strings.ReplaceAll(nodes, "$", `\$`))
		return nil
	}
	if c.Shell == "zsh" {
		fmt.Println("#compdef pgbaton\nautoload -U +X bashcompinit && bashcompinit")
	}
	fmt.Printf(`_pgbaton() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} cmd= w
	for w in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
		case $w in -*) ;; *) [ -n "$cmd" ] || cmd=$w ;; esac
	done
	case $prev in
	--to) COMPREPLY=($(compgen -W "$(%s)" -- "$cur")); return ;;
	-o|--output) COMPREPLY=($(compgen -W "table wide json" -- "$cur")); return ;;
	completion) COMPREPLY=($(compgen -W "bash zsh fish" -- "$cur")); return ;;
	--tool) COMPREPLY=($(compgen -W "pcs crm" -- "$cur")); return ;;
	--pgdata) COMPREPLY=($(compgen -d -- "$cur")); return ;;
	esac
	case $cmd in
`, nodes)
	for _, n := range names {
		words := strings.Join(commands[n], " ")
		if n == "promote" {
			words += " $(" + nodes + ")"
		}
		fmt.Printf("\t%s) COMPREPLY=($(compgen -W \"%s\" -- \"$cur\")) ;;\n", n, words)
	}
	fmt.Printf("\t*) COMPREPLY=($(compgen -W \"%s --help --resource -r\" -- \"$cur\")) ;;\n\tesac\n}\ncomplete -F _pgbaton pgbaton\n", strings.Join(names, " "))
	return nil
}
