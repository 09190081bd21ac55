package sealed

import (
	"context"
	"os"
	"os/user"
	"strconv"

	"github.com/postern-proxy/postern/agent/store"
)

// Identity implements store.Identifier: the user of this machine, by name or,
// where the machine knows none, by number. A sealed store records no writers,
// so that there is no entity.
func (s *Store) Identity(ctx context.Context) (store.Identity, error) {
	if err := alive(ctx, "identity"); err != nil {
		return store.Identity{}, err
	}
	u, err := user.Current()
	if err != nil || u.Username == "" {
		return store.Identity{DisplayName: "uid " + strconv.Itoa(os.Getuid())}, nil
	}
	return store.Identity{DisplayName: u.Username}, nil
}
