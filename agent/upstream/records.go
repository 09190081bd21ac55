package upstream

import (
	"encoding/binary"
	"net"
)

// records follows the records of TLS (RFC 8446 section 5.1) that a connection
// brings, so that it is known whether crypto/tls holds one that nobody has read:
// it reads ahead, and says nothing of it.
type records struct {
	net.Conn
	head  [5]byte // of the record that comes
	begun int     // how much of its head has come
	left  int     // how much of its body has not
	count int     // those that have come whole
	dry   bool    // Read brings nothing
}

// inside reports whether a part of a record has come.
func (r *records) inside() bool { return r.begun > 0 }

func (r *records) Read(p []byte) (int, error) {
	if r.dry {
		return 0, errDry
	}
	n, err := r.Conn.Read(p)
	r.follow(p[:n])
	return n, err
}

func (r *records) follow(b []byte) {
	for len(b) > 0 {
		if r.begun < len(r.head) {
			n := copy(r.head[r.begun:], b)
			r.begun += n
			b = b[n:]
			if r.begun == len(r.head) {
				r.left = int(binary.BigEndian.Uint16(r.head[3:]))
			}
		} else {
			n := min(r.left, len(b))
			r.left -= n
			b = b[n:]
		}
		if r.begun == len(r.head) && r.left == 0 {
			r.begun = 0
			r.count++
		}
	}
}

// errDry is no failure of the connection: crypto/tls goes on after an error that is temporary.
var errDry net.Error = dry{}

type dry struct{}

func (dry) Error() string   { return "nothing is read for the moment" }
func (dry) Timeout() bool   { return true }
func (dry) Temporary() bool { return true }
