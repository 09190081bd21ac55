package wall_test

// groups are the classes, in order.
var groups = []*group{host}
