#!/bin/bash
# Runs on the finished root file system, outside it, after packages and RemoveFiles= and before
# mkosi clamps the mtimes and packs the initrd. Everything here is checked: what is not there to be
# removed any more, or slips in anew with a package, fails the build.
set -euo pipefail
umask 022
cd "$BUILDROOT"

# A KernelModules= pattern that matches nothing is dropped without a word. virtio_net is built into
# Ubuntu's kernel; what only exists as a module is checked.
for module in tdx-guest dm-crypt; do
    [[ $(find usr/lib/modules -name "$module.ko*") ]] || { echo "kernel module $module is missing from the image" >&2; exit 1; }
done

# The filter comes after depmod: without a second run the kernel would look for modules that are gone.
for kernel in usr/lib/modules/*; do depmod --basedir "$BUILDROOT" "${kernel##*/}"; done

# A positive list of programs: what nothing starts is not there. So there is no shell, no login, no
# package manager, and nothing to change identity with.
keep='^(init|halt|poweroff|reboot|shutdown|mount|umount|kmod|depmod|insmod|lsmod|modinfo|modprobe|rmmod'
keep+='|journalctl|networkctl|systemctl|systemd-sysusers|systemd-tmpfiles|udevadm|python3(\.[0-9]+)?)$'
for program in usr/bin/* usr/sbin/*; do
    [[ ${program##*/} =~ $keep ]] || rm -rf "$program"
done
find usr/lib/systemd/system etc/systemd \( -name '*getty*' -o -name 'debug-shell*' -o -name 'emergency.*' \
    -o -name 'rescue*' -o -name '*sulogin*' \) -prune -exec rm -rf {} +
find usr/lib/systemd -maxdepth 1 -name 'systemd-sulogin-shell' -delete
rm -f usr/lib/systemd/system/{,*.wants/}proc-sys-fs-binfmt_misc.*      # the kernel has no binfmt_misc here
find usr/lib/systemd/system-generators -name 'systemd-*getty*' -delete -o -name 'systemd-debug-generator' -delete

# tmpfiles.d restores /var at boot; a build by an ordinary user owns files by that user.
[[ $(stat -c %u .) != 0 ]] || find . -xdev \( ! -uid 0 -o ! -gid 0 \) -exec chown -h 0:0 {} +

chmod ug-s usr/bin/mount usr/bin/umount      # only root runs here
: > etc/machine-id                     # empty: a transient id at each boot, and never "first boot"
touch etc/.updated var/.updated        # no ConditionNeedsUpdate= services at boot

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
mkosi-chroot /usr/lib/zipnet/bin/python3 -I -B -c 'import attestation.cli, attestation.tdx, zipnet.cli, zipnet.sdk, zipnet.roles.server'
if [[ $(cat usr/lib/zipnet/flavor) == production ]]; then
    ! mkosi-chroot /usr/lib/zipnet/bin/python3 -I -B -c 'import attestation.providers.mock' 2> /dev/null ||
        { echo "the mock TEE can be imported in a production image" >&2; exit 1; }
fi

if found=$(find . -xdev -type f -perm /6000) && [[ $found ]]; then
    echo "setuid or setgid files are left in the image: $found" >&2
    exit 1
fi
