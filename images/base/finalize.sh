#!/bin/bash
# Runs on the finished root file system, outside it, after packages and RemoveFiles= and before
# mkosi clamps the mtimes and packs the initrd. Everything here is checked: what is not there to be
# removed any more, or slips in anew with a package, fails the build.
set -euo pipefail
umask 022
cd "$BUILDROOT"

# A KernelModules= pattern that matches nothing is dropped without a word. A driver can also be built
# into the kernel, as virtio_net is into Ubuntu's.
modules=$(python3 -c 'import json, os; print(*json.load(open(os.environ["MKOSI_CONFIG"]))["KernelModules"])')
for module in $modules; do
    [[ $(find usr/lib/modules -name "$module.ko*") ]] || grep -q "/$module\.ko$" usr/lib/modules/*/modules.builtin ||
        { echo "kernel module $module is missing from the image" >&2; exit 1; }
done

# The filter comes after depmod: without a second run the kernel would look for modules that are gone.
for kernel in usr/lib/modules/*; do depmod --basedir "$BUILDROOT" "${kernel##*/}"; done

# A positive list of programs: what nothing starts is not there. So there is no shell, no login, no
# package manager, and nothing to change identity with.
keep='^(init|halt|poweroff|reboot|shutdown|mount|umount|kmod|depmod|insmod|lsmod|modinfo|modprobe|rmmod'
keep+='|journalctl|networkctl|nft|systemctl|systemd-sysusers|systemd-tmpfiles|udevadm|python3(\.[0-9]+)?)$'
for program in usr/bin/* usr/sbin/*; do
    [[ ${program##*/} =~ $keep ]] || rm -rf "$program"
done
find usr/lib/systemd/system etc/systemd \( -name '*getty*' -o -name 'debug-shell*' -o -name 'emergency.*' \
    -o -name 'rescue*' -o -name '*sulogin*' \) -prune -exec rm -rf {} +
find usr/lib/systemd -maxdepth 1 -name 'systemd-sulogin-shell' -delete
rm -f usr/lib/systemd/system/{,*.wants/}proc-sys-fs-binfmt_misc.*      # the kernel has no binfmt_misc here

# Positive lists of what starts by itself. Others mount debugfs, answer on sockets, look for disks, or
# run what a kernel command line or a credential says.
keep='^(sys-kernel-config\.mount|tmp\.mount|systemd-(journald(-dev-log)?\.socket|udevd-(control|kernel)\.socket'
keep+='|(journald|modules-load|sysctl|tmpfiles-setup(-dev(-early)?)?|udev-trigger|udevd)\.service))$'
for unit in usr/lib/systemd/system/*.wants/*; do
    [[ ${unit##*/} =~ $keep ]] || rm "$unit"
done
find usr/lib/systemd/system-generators -type f ! -name systemd-fstab-generator -delete

# A build by an ordinary user owns files by that user.
[[ $(stat -c %u .) != 0 ]] || find . -xdev \( ! -uid 0 -o ! -gid 0 \) -exec chown -h 0:0 {} +

chmod ug-s usr/bin/mount usr/bin/umount      # only root runs here
: > etc/machine-id                 # empty: a transient id at each boot, and never "first boot"

python=$(basename usr/lib/python3.*[0-9])
site=usr/lib/zipnet/lib/python/site-packages
[[ -d $site ]] || { echo "the runtime is missing from the image: $site" >&2; exit 1; }
mkdir -p usr/lib/zipnet/bin
ln -s /usr/bin/python3 usr/lib/zipnet/bin/python3
printf 'home = /usr/bin\ninclude-system-site-packages = false\n' > usr/lib/zipnet/pyvenv.cfg
mv usr/lib/zipnet/lib/python "usr/lib/zipnet/lib/$python"
site=usr/lib/zipnet/lib/$python/site-packages
# Byte code that does not depend on mtimes, made by the interpreter that will read it.
find "usr/lib/$python" "$site" -name __pycache__ -prune -exec rm -rf {} +
mkosi-chroot "/usr/bin/$python" -B -X utf8 -m compileall -q -j 1 --invalidation-mode unchecked-hash "/usr/lib/$python" "/$site"

# What an appliance will import is there, binary wheels for this Python included; what it must not
# have is not.
mkosi-chroot /usr/lib/zipnet/bin/python3 -I -B -c 'import attestation.cli, attestation.tdx, zipnet.cli, zipnet.sdk, zipnet.commands.appliance'
if [[ $(cat usr/lib/zipnet/flavor) == production ]]; then
    ! mkosi-chroot /usr/lib/zipnet/bin/python3 -I -B -c 'import attestation.providers.mock' 2> /dev/null ||
        { echo "the mock TEE can be imported in a production image" >&2; exit 1; }
fi

if found=$(find . -xdev -type f -perm /6002) && [[ $found ]]; then
    echo "setuid, setgid or world-writable files are left in the image: $found" >&2
    exit 1
fi
