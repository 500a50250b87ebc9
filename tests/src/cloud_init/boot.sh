# The first boot of a guest, as PID 1 of namespaces made for it: finds its data source and sets
# itself up, in a copy of this machine's root file system that is gone when this ends.
#
# $1: directory for the copy, $2: directory for what is to be seen, $3: cloud-init's configuration.
# The environment has product_name: this is how cloud-init knows a guest of Nova that has no DMI
# tables of its own, and a namespace has none.
set -eu
copy=$1 seen=$2 configuration=$3

mount -t tmpfs tmpfs "$copy"
mkdir "$copy/upper" "$copy/work" "$copy/root"
mount -t overlay -o "lowerdir=/,upperdir=$copy/upper,workdir=$copy/work" overlay "$copy/root"
cd "$copy/root"

# Of this machine's devices, file systems and firmware the guest sees nothing.
mount -t proc proc proc
mount -t sysfs sysfs sys
for hidden in sys/class/dmi/id sys/firmware; do
    [ ! -d "$hidden" ] || mount -t tmpfs tmpfs "$hidden"
done
for fresh in run tmp dev; do
    mount -t tmpfs tmpfs "$fresh"
done
for device in null zero full random urandom; do
    : >"dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done

# Nor what cloud-init did to this machine, if it did. No resolver: nobody could answer.
rm -rf var/lib/cloud var/log/cloud-init* etc/cloud/cloud-init.disabled etc/cloud/ds-identify.cfg \
    etc/resolv.conf
find etc/cloud/cloud.cfg.d -name '*.cfg' ! -name 05_logging.cfg -delete
: >etc/resolv.conf
cp "$configuration" etc/cloud/cloud.cfg.d/90_guest.cfg
mount --bind "$seen" mnt

keep() {
    chroot . sh -c 'hostname >/mnt/kernel-hostname; cp "$@" /mnt' keep \
        /var/log/cloud-init.log /run/cloud-init/ds-identify.log \
        /run/cloud-init/instance-data-sensitive.json /var/lib/cloud/instance/user-data.txt \
        /home/guest/.ssh/authorized_keys /srv/told || true
}
trap keep EXIT

# What systemd runs: first its generator, then the service.
chroot . /usr/lib/cloud-init/ds-identify
chroot . cloud-init init
