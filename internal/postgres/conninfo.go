package postgres

import (
	"net/url"
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
	for rest := strings.TrimLeft(info, " \t\r\n"); rest != ""; rest = strings.TrimLeft(rest, " \t\r\n") {
		k, after, ok := strings.Cut(rest, "=")
		if !ok {
			return value
		}
		v, tail := conninfoToken(strings.TrimLeft(after, " \t\r\n"))
		if strings.TrimRight(k, " \t\r\n") == key {
			value = v // the last one wins, as in libpq
		}
		rest = tail
	}
	return value
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
