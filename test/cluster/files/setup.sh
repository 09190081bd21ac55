# Prepares the node's namespaces, as their first command. What it mounts, adds or
# sets is seen in them only.
set -eu
mount --make-rprivate /
mount --make-rshared /
mount -t proc proc /proc
# What the kubelet, containerd and the network plugins keep outside their own folders.
for dir in /run /var/lib/kubelet /var/log/pods /var/log/containers /var/lib/cni /etc/cni; do
  mkdir -p "$dir"
  mount -t tmpfs -o mode=755 tmpfs "$dir"
done
mkdir -p /run/netns /run/containerd /etc/cni/net.d

ip link set lo up
if [ "$BRIDGE" = yes ]; then
  ip link add node0 type bridge
else
  ip link add node0 type dummy 2>/dev/null || ip tuntap add dev node0 mode tun
fi
ip addr add "$NODE_IP/24" dev node0
ip link set node0 up
ip route add "$SERVICES" dev node0
if [ -n "$DNS_IP" ]; then ip addr add "$DNS_IP/32" dev node0; fi
set_sysctl() { if [ -e "/proc/sys/$1" ]; then echo "$2" > "/proc/sys/$1"; fi; }
set_sysctl net/ipv4/ip_forward 1
set_sysctl net/ipv4/conf/all/route_localnet 1
set_sysctl net/bridge/bridge-nf-call-iptables 1
