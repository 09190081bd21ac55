package sealed

import (
	"syscall"
	"time"
)

// ctime is when the file or what is known of it changed last.
func ctime(st *syscall.Stat_t) time.Time { return time.Unix(st.Ctim.Unix()) }
