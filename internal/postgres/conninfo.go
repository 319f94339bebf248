package postgres

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// ConninfoValue picks one keyword out of a libpq connection string (documentation, "Connection Strings"), in either of
// its forms; "" if it is not there. No error ever repeats the string: there may be a password in it.
func ConninfoValue(info, key string) string {
	value := ""
	pairs, _ := conninfoPairs(info)
	for _, pair := range pairs {
		if pair[0] == key {
			value = pair[1] // the last one wins, as in libpq
		}
	}
	return value
}

// ConninfoHosts are the hosts of a connection string, which libpq tries one after the other (documentation, "Specifying
// Multiple Hosts"): by address where there are addresses.
func ConninfoHosts(info string) []string {
	for _, key := range []string{"hostaddr", "host"} {
		if v := ConninfoValue(info, key); v != "" {
			return strings.Split(v, ",")
		}
	}
	return nil
}

// SetConninfo is a connection string with one keyword set, in the form that it has. Not if it is not understood as a whole:
// something of it would be lost.
func SetConninfo(info, key, value string) (string, bool) {
	pairs, ok := conninfoPairs(info)
	if u, is := parseURI(info); is {
		u.params = slices.DeleteFunc(u.params, func(p string) bool { return uriPair(p)[0] == key })
		u.params = append(u.params, key+"="+uriEscape(value))
		return u.String(), ok
	}
	pairs = slices.DeleteFunc(pairs, func(p [2]string) bool { return p[0] == key })
	return joinConninfo(append(pairs, [2]string{key, value})), ok
}

// notShown stands in the place of what must not be read by everybody.
const notShown = "(not shown)"

// ShownConninfo is a connection string as it may be shown, and whether there is a password in it. One that is not understood
// is not shown: any part of it may be one.
func ShownConninfo(info string) (shown string, secret bool) {
	pairs, ok := conninfoPairs(info)
	secret = slices.ContainsFunc(pairs, func(p [2]string) bool { return isSecret(p[0]) })
	if !ok {
		return notShown, secret
	}
	if u, is := parseURI(info); is {
		if u.password != "" {
			u.password = notShown
		}
		for n, p := range u.params {
			if key := uriPair(p)[0]; isSecret(key) {
				u.params[n] = key + "=" + notShown
			}
		}
		return u.String(), secret
	}
	var out []string
	for _, p := range pairs {
		if isSecret(p[0]) {
			out = append(out, p[0]+"="+notShown)
		} else {
			out = append(out, joinConninfo([][2]string{p}))
		}
	}
	return strings.Join(out, " "), secret
}

// isSecret knows the keywords whose values prove who one is: password, sslpassword, oauth_client_secret, scram_client_key.
func isSecret(key string) bool {
	key = strings.ToLower(key)
	return strings.Contains(key, "password") || strings.Contains(key, "secret") || strings.HasPrefix(key, "scram_")
}

// SplitPassword takes the password out of a connection string, in either of its forms, so that the rest may stand in a
// command line, and adds those of defaults that it does not set.
func SplitPassword(info string, defaults ...[2]string) (rest, password string) {
	password = ConninfoValue(info, "password")
	pairs, _ := conninfoPairs(info)
	missing := slices.DeleteFunc(slices.Clone(defaults), func(d [2]string) bool {
		return slices.ContainsFunc(pairs, func(p [2]string) bool { return p[0] == d[0] })
	})
	if u, is := parseURI(info); is {
		u.password = ""
		u.params = slices.DeleteFunc(u.params, func(p string) bool { return uriPair(p)[0] == "password" })
		for _, d := range missing {
			u.params = append(u.params, d[0]+"="+uriEscape(d[1]))
		}
		return u.String(), password
	}
	pairs = slices.DeleteFunc(append(pairs, missing...), func(p [2]string) bool { return p[0] == "password" })
	return joinConninfo(pairs), password
}

// conninfoPairs are the keywords and values of a connection string; ok is false if they may not be all, or not what is meant.
func conninfoPairs(info string) (pairs [][2]string, ok bool) {
	if u, is := parseURI(info); is {
		return u.pairs()
	}
	ok = true
	for rest := strings.TrimLeft(info, space); rest != ""; rest = strings.TrimLeft(rest, space) {
		k, after, is := strings.Cut(rest, "=")
		if !is {
			return pairs, false
		}
		k = strings.TrimRight(k, space)
		v, tail, closed := conninfoToken(strings.TrimLeft(after, space))
		pairs = append(pairs, [2]string{k, v})
		// pg_stat_wal_receiver quotes nothing: what follows may be of use.
		ok = ok && closed && keyword.MatchString(k)
		rest = tail
	}
	return pairs, ok
}

const space = " \t\r\n"

// keyword is what one of libpq's looks like: anything else is a piece of a value, a password perhaps, that was not quoted.
var keyword = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]*$`)

func joinConninfo(pairs [][2]string) string {
	var out []string
	for _, p := range pairs {
		out = append(out, p[0]+"="+quoteConninfo(p[1]))
	}
	return strings.Join(out, " ")
}

func quoteConninfo(v string) string {
	if v != "" && !strings.ContainsAny(v, " \t\r\n'\\") {
		return v
	}
	return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(v) + "'"
}

// uri is scheme://[user[:password]@][hosts][/dbname][?params], each part as it stands, percent-encoded.
type uri struct {
	scheme, user, password string
	hasUser                bool
	hosts, path            string // path begins with its slash
	params                 []string
}

// parseURI takes a connection URI apart as libpq does (conninfo_uri_parse_options), but for an @ in a password, which libpq
// takes for the end of it and a person may not.
func parseURI(info string) (u uri, is bool) {
	scheme, rest, ok := strings.Cut(info, "://")
	if !ok || scheme != "postgresql" && scheme != "postgres" {
		return uri{}, false
	}
	u.scheme = scheme
	if i := strings.IndexAny(rest, "@/"); i >= 0 && rest[i] == '@' {
		i += strings.LastIndexByte("@"+upTo(rest[i+1:], "/?"), '@')
		u.hasUser = true
		u.user, u.password, _ = strings.Cut(rest[:i], ":")
		rest = rest[i+1:]
	}
	u.hosts = upTo(rest, "/?")
	var query string
	u.path, query, _ = strings.Cut(rest[len(u.hosts):], "?")
	for p := range strings.SplitSeq(query, "&") {
		if p != "" {
			u.params = append(u.params, p)
		}
	}
	return u, true
}

// upTo is what stands before the first of some characters.
func upTo(s, chars string) string {
	if i := strings.IndexAny(s, chars); i >= 0 {
		return s[:i]
	}
	return s
}

func (u uri) String() string {
	text := u.scheme + "://" + u.user
	if u.password != "" {
		text += ":" + u.password
	}
	if u.hasUser {
		text += "@"
	}
	text += u.hosts + u.path
	if len(u.params) > 0 {
		text += "?" + strings.Join(u.params, "&")
	}
	return text
}

// pairs are its keywords and values, and whether all of it is understood.
func (u uri) pairs() (pairs [][2]string, ok bool) {
	ok = !strings.Contains(u.path, "@") // there is a slash in the password then
	add := func(key, value string) {
		text, err := url.PathUnescape(value)
		ok = ok && err == nil
		if text != "" {
			pairs = append(pairs, [2]string{key, text})
		}
	}
	add("user", u.user)
	add("password", u.password)
	var hosts, ports []string
	for h := range strings.SplitSeq(u.hosts, ",") {
		host, port, _ := strings.Cut(h, ":")
		if v6, after, is := strings.Cut(strings.TrimPrefix(h, "["), "]"); is {
			host, port = v6, strings.TrimPrefix(after, ":")
		}
		ok = ok && strings.Trim(port, "0123456789") == ""
		hosts, ports = append(hosts, host), append(ports, port)
	}
	add("host", strings.Join(hosts, ","))
	if strings.Join(ports, "") != "" {
		add("port", strings.Join(ports, ","))
	}
	add("dbname", strings.TrimPrefix(u.path, "/"))
	for _, p := range u.params {
		ok = ok && strings.Contains(p, "=")
		pairs = append(pairs, uriPair(p))
		_, err := url.PathUnescape(p)
		ok = ok && err == nil
	}
	return pairs, ok
}

// uriPair is a parameter of a URI, decoded where that is possible: libpq knows no + for a space.
func uriPair(param string) [2]string {
	key, value, _ := strings.Cut(param, "=")
	pair := [2]string{key, value}
	for n, text := range pair {
		if decoded, err := url.PathUnescape(text); err == nil {
			pair[n] = decoded
		}
	}
	return pair
}

func uriEscape(value string) string {
	return strings.ReplaceAll(url.QueryEscape(value), "+", "%20")
}

// conninfoToken reads one value, quoted or not: a backslash makes the next character stand for itself in both.
// ok is false if the closing quote is missing.
func conninfoToken(s string) (value, rest string, ok bool) {
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
			return b.String(), s[n+1:], true
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), "", !quoted
}
