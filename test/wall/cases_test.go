package wall_test

// groups are the classes, in order.
var groups = []*group{host, sni, spelled, connection, credentials, redirect, smuggling, answers, upgrade, trailer, echo, ssrf, port, path, frozen, ca, stale, secrets, overStreams}
