package postgres

import (
	"net/url"
	"slices"
	"strings"
)

// ConninfoValue picks one keyword out of a libpq connection string (documentation, "Connection Strings"), in either of
// its forms; "" if it is not there. No error ever repeats the string: there may be a password in it.
func ConninfoValue(info, key string) string {
	if strings.HasPrefix(info, "postgresql://") || strings.HasPrefix(info, "postgres://") {
		u, err := url.Parse(info)
		if err != nil {
			// Several hosts are allowed here and not in other URLs; the parameters are behind the question mark all the same.
			_, query, _ := strings.Cut(info, "?")
			values, _ := url.ParseQuery(query)
			return values.Get(key)
		}
		return u.Query().Get(key)
	}
	value := ""
	for _, pair := range conninfoPairs(info) {
		if pair[0] == key {
			value = pair[1] // the last one wins, as in libpq
		}
	}
	return value
}

// conninfoPairs splits a string of keywords and values. What cannot be understood ends it.
func conninfoPairs(info string) (pairs [][2]string) {
	for rest := strings.TrimLeft(info, " \t\r\n"); rest != ""; rest = strings.TrimLeft(rest, " \t\r\n") {
		k, after, ok := strings.Cut(rest, "=")
		if !ok {
			break
		}
		v, tail := conninfoToken(strings.TrimLeft(after, " \t\r\n"))
		pairs = append(pairs, [2]string{strings.TrimRight(k, " \t\r\n"), v})
		rest = tail
	}
	return pairs
}

// SplitPassword takes the password out of a connection string, in either of its forms, so that the rest may stand in a
// command line, and adds those of defaults that it does not set.
func SplitPassword(info string, defaults ...[2]string) (rest, password string) {
	password = ConninfoValue(info, "password")
	if scheme, tail, ok := strings.Cut(info, "://"); ok && (scheme == "postgresql" || scheme == "postgres") {
		return splitURI(scheme, tail, password, defaults)
	}
	var out []string
	pairs := conninfoPairs(info)
	for _, d := range defaults {
		if !slices.ContainsFunc(pairs, func(p [2]string) bool { return p[0] == d[0] }) {
			pairs = append(pairs, d)
		}
	}
	for _, p := range pairs {
		if p[0] != "password" {
			out = append(out, p[0]+"="+quoteConninfo(p[1]))
		}
	}
	return strings.Join(out, " "), password
}

func quoteConninfo(v string) string {
	if v != "" && !strings.ContainsAny(v, " \t\r\n'\\") {
		return v
	}
	return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(v) + "'"
}

// splitURI is SplitPassword for scheme://[user[:password]@][hosts][/dbname][?parameters].
func splitURI(scheme, tail, password string, defaults [][2]string) (string, string) {
	before, query, _ := strings.Cut(tail, "?")
	authority, path, hasPath := strings.Cut(before, "/")
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		user, secret, _ := strings.Cut(authority[:i], ":")
		if text, err := url.PathUnescape(secret); err == nil && text != "" && password == "" {
			password = text
		}
		authority = user + authority[i:]
	}
	var params []string
	set := map[string]bool{"dbname": path != ""}
	for p := range strings.SplitSeq(query, "&") {
		k, _, _ := strings.Cut(p, "=")
		if k != "" && k != "password" {
			params, set[k] = append(params, p), true
		}
	}
	for _, d := range defaults {
		if !set[d[0]] {
			params = append(params, d[0]+"="+url.QueryEscape(d[1]))
		}
	}
	out := scheme + "://" + authority
	if hasPath {
		out += "/" + path
	}
	if len(params) > 0 {
		out += "?" + strings.Join(params, "&")
	}
	return out, password
}

// conninfoToken reads one value, quoted or not: a backslash makes the next character stand for itself in both.
func conninfoToken(s string) (value, rest string) {
	var b strings.Builder
	quoted := strings.HasPrefix(s, "'")
	if quoted {
		s = s[1:]
	}
	for n := 0; n < len(s); n++ {
		switch c := s[n]; {
		case c == '\\' && n+1 < len(s):
			n++
			b.WriteByte(s[n])
		case quoted && c == '\'', !quoted && strings.IndexByte(" \t\r\n", c) >= 0:
			return b.String(), s[n+1:]
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), ""
}
