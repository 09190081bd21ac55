package spec

import (
	"errors"
	"strings"
)

// Pattern is a compiled Capability.Path:
//
//	/chat/completions    the path's last segments are these
//	^/v1/models          the path's segments are exactly these
//	^/v1/models/*        * stands for any run of characters in one segment
//	^/v1/files/**        ** as the last segment: nothing, or any further segments
//	:generateContent     the last segment ends in this (short for /*:generateContent)
//
// "^" is where the base URL's path ends. Paths are compared in their escaped
// form, case by case: what is spelled differently is unknown, never guessed.
type Pattern struct {
	segments []string
	anchored bool
	rest     bool // ended in **
}

// ParsePattern compiles a pattern.
func ParsePattern(s string) (Pattern, error) {
	var p Pattern
	if strings.HasPrefix(s, ":") {
		s = "/*" + s
	}
	s, p.anchored = strings.CutPrefix(s, "^")
	if !strings.HasPrefix(s, "/") || s == "/" {
		return Pattern{}, errors.New("is no path pattern; write /last/segments, ^/whole/path, or :verb")
	}
	p.segments = strings.Split(s[1:], "/")
	if n := len(p.segments) - 1; p.segments[n] == "**" {
		p.segments, p.rest = p.segments[:n], true
		if !p.anchored || n == 0 {
			return Pattern{}, errors.New("has a ** without a path that begins with ^ before it; write ^/v1/files/**")
		}
	}
	for _, seg := range p.segments {
		switch {
		case seg == "" || seg == "." || seg == "..":
			return Pattern{}, errors.New("has an empty or dot segment")
		case strings.Contains(seg, "**"):
			return Pattern{}, errors.New("has a ** that is not the last segment of its own")
		case strings.ContainsAny(seg, "?#\\^") || strings.ContainsFunc(seg, func(r rune) bool { return r <= ' ' || r > '~' }):
			return Pattern{}, errors.New("holds a character that no escaped path has; leave the query out and escape the rest")
		}
	}
	return p, nil
}

// Match reports whether an escaped path, which begins with "/", fits. It does not allocate.
func (p Pattern) Match(path string) bool {
	if path == "" || path[0] != '/' {
		return false
	}
	if !p.anchored {
		return p.matchEnd(path)
	}
	path = path[1:]
	for i, seg := range p.segments {
		got, rest, more := strings.Cut(path, "/")
		if !glob(seg, got) {
			return false
		}
		if !more {
			return i == len(p.segments)-1
		}
		path = rest
	}
	return p.rest
}

func (p Pattern) matchEnd(path string) bool {
	for i := len(p.segments) - 1; i >= 0; i-- {
		cut := strings.LastIndexByte(path, '/')
		if cut < 0 || !glob(p.segments[i], path[cut+1:]) {
			return false
		}
		path = path[:cut]
	}
	return true
}

// glob matches one segment; * is any run of characters. It takes the earliest
// place for every part, which is right for a single wildcard character.
func glob(pattern, s string) bool {
	head, tail, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == s
	}
	if !strings.HasPrefix(s, head) || s == "" {
		return false
	}
	s = s[len(head):]
	for {
		part, rest, more := strings.Cut(tail, "*")
		if !more {
			return len(s) >= len(part) && strings.HasSuffix(s, part)
		}
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s, tail = s[i+len(part):], rest
	}
}
