package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"unsafe"

	"github.com/pgbaton/pgbaton/internal/console"
)

// isTerminal asks the kernel, as isatty(3) does.
func isTerminal(f *os.File) bool {
	var t syscall.Termios
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), syscall.TCGETS, uintptr(unsafe.Pointer(&t)))
	return errno == 0
}

// writeJSON is the form for programs.
func writeJSON(w io.Writer, v any) error {
	out := json.NewEncoder(w)
	out.SetIndent("", "  ")
	return out.Encode(v)
}

// ask asks a person and returns what is typed, without the space around it.
func ask(question string) string {
	fmt.Print(question)
	line, _ := bufio.NewReader(os.Stdin).ReadString('\n')
	return strings.TrimSpace(line)
}

// isYes knows the answers to a question that ends with [y/N].
func isYes(answer string) bool {
	a := strings.ToLower(answer)
	return a == "y" || a == "yes"
}

// styleOf is colours on a terminal only (https://no-color.org), and signs that the locale can show.
func styleOf(f *os.File) console.Style {
	locale := os.Getenv("LC_ALL")
	for _, name := range []string{"LC_CTYPE", "LANG"} {
		if locale == "" {
			locale = os.Getenv(name)
		}
	}
	locale = strings.ToLower(locale)
	return console.Style{
		Color: isTerminal(f) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb",
		UTF8:  strings.Contains(locale, "utf-8") || strings.Contains(locale, "utf8"),
	}
}
