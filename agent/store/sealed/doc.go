// Package sealed is the embedded store: one file whose structure can be read
// by anyone who may read the file, whose values cannot, and of which nothing
// can be changed unnoticed.
//
// # The file
//
// Indented JSON, in this order:
//
//	format      "postern-sealed-v1"
//	key         how the data key is wrapped: kind (key_file or passphrase), id
//	            (tells one wrapping key from another), argon2id (parameters and
//	            salt, passphrase form only), wrapped (base64)
//	generation  counts the writes, from 1
//	written     when the last write was, UTC
//	paths       path → current, max_versions, custom, versions; a version is
//	            number, created, destroyed and fields: name → base64
//	mac         HMAC-SHA256 over every byte of the file before this member
//
// Each field value, and the data key, is one AES-256-GCM message: a random
// 96-bit nonce, the ciphertext, the tag. A value's associated data is the
// format, its path, version number, field name and created time; the data
// key's is the format and the rest of the key member. The data key (32 random
// bytes) is never used itself: HKDF-SHA256 makes the key of the values and the
// key of the mac from it. The wrapping key is the key file's 32 bytes, or
// argon2id of the passphrase. What is read before the mac has been checked is
// the key member only, and the work that it can ask for is bounded.
//
// So a moved value, a dropped version, an edited label, a changed number or
// a torn write is an error, and such a file is never overwritten. Three things
// the file cannot hide or detect: the lengths of values, paths and custom
// metadata are in the clear; and putting back an older copy of the *whole*
// file (a backup, a snapshot) is valid for a process that starts afterwards.
// A process that has read a newer generation refuses the older one. Who needs
// more than that needs Vault.
//
// # Writing
//
// Writers take an advisory lock (<file>.lock), read the file again, check, and
// replace it: a temporary file beside it, 0600, synced, renamed, directory
// synced. A kill between any two steps leaves the old file or the new one, and
// at most a temporary file that the next writer removes. Readers take no lock:
// they read the file again when it changed, and open it only where a glance
// at its size and times does not tell that it has not. Neither file nor lock is ever
// followed through a symbolic link; the key file may be one (mounted
// Kubernetes secrets are), because it is only read.
//
// A write costs time in proportion to the file's size, which is bounded at
// 64 MiB; this is a store for one machine's keys, not for a fleet.
//
// # Memory
//
// Keys and values live in secret.Value. A value is decrypted when it is asked
// for, into a buffer that is wiped, and nothing decrypted is kept. What is not
// ours to wipe are the expanded round keys and hash states inside the standard
// library's ciphers: they are garbage after each call, and last until the
// collector reuses their memory.
package sealed
