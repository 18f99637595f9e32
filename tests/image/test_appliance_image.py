"""What an appliance's system lets its own program do, and what reaches it from outside."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from release.build.cpio import Entry
from release.build.settings import Role
from tests.image.conftest import Image, Toolbox
from tests.image.overlaid import LIMIT, beside, facts, instead, running, text

# Tenths of the exposure that `systemd-analyze security` computes; 100 is a service without limits.
EXPOSURE = 20
ALLOWED, CLOSED = (7744, 9464), 8080
SILENCE_SECONDS = 3
STOP_SECONDS = 30
DISK_SIZE = 1 << 20

# Started as root, without any sandbox.
OUTSIDE = """
import json, os, stat, subprocess, time

def tell(name, value):
    print("witness", name, json.dumps(value), flush=True)

def system(*arguments):
    done = subprocess.run(("systemctl", "--plain", "--no-legend", "--no-pager", *arguments),
                          capture_output=True, text=True)
    return [line.split()[0] for line in done.stdout.splitlines() if line.split()]

open_to_all, privileged = [], []
for parent, folders, files in os.walk("/"):
    folders[:] = [n for n in folders if os.path.join(parent, n) not in ("/proc", "/sys")]
    for name in (*folders, *files):
        path = os.path.join(parent, name)
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            continue
        if stat.S_ISDIR(mode) and mode & 0o1002 == 0o002 or stat.S_ISREG(mode) and mode & 0o002:
            open_to_all.append(path)
        if stat.S_ISREG(mode) and mode & 0o6000:
            privileged.append(path)
tell("open_to_all", open_to_all)
tell("privileged", privileged)
tell("failed", system("--failed"))
tell("active", system("list-units", "--state=active", "--type=service,socket,timer,path"))
tell("modules", [line.split()[0] for line in open("/proc/modules")])
tell("root", next(l.split()[5].split(",")[0] for l in open("/proc/self/mountinfo")
                  if l.split()[4] == "/"))
open("/run/witness", "w").close()
"""

# Started in the place of the role's program, in its sandbox. Ready when the other one is done; ends
# when the power button is pressed.
INSIDE = """
import errno, glob, json, mmap, os, select, socket, struct, sys, time
from zipnet.preflight import look

def tell(name, value):
    print("witness", name, json.dumps(value), flush=True)

def attempt(action):
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"

def write(folder):
    with open(os.path.join(folder, "witness"), "w") as file:
        file.write("x")

def reach(path, flags):
    os.close(os.open(path, flags | os.O_NOCTTY | os.O_NONBLOCK))

seen = look()
tell("listeners", seen.listeners)
tell("lockdown", seen.lockdown)
tell("flavor", seen.flavor)
folders = ["/", "/dev/shm", "/etc", "/home", "/root", "/run", "/run/zipnet", "/tmp", "/usr", "/var",
           "/var/lib", "/var/tmp", "/sys/kernel/config", "/sys/fs/cgroup", "/proc/sys/kernel"]
tell("writable", [f for f in folders if attempt(lambda: write(f)) == "ok"])
knobs = ["/sys/kernel/mm/ksm/run", "/sys/power/state", "/proc/sys/kernel/hostname",
         "/proc/sysrq-trigger"]
tell("knobs", [k for k in knobs if attempt(lambda: reach(k, os.O_WRONLY)) == "ok"])
# Without TDX the kernel has nobody to ask; a read-only configfs would say EROFS.
tell("tsm", attempt(lambda: os.mkdir("/sys/kernel/config/tsm/report/witness")))
devices = ["/dev/console", "/dev/fuse", "/dev/hwrng", "/dev/kmsg", "/dev/mem", "/dev/ttyS0",
           "/dev/urandom", "/dev/vda", *glob.glob("/dev/vport*"), *glob.glob("/dev/input/event*")]
tell("readable", sorted(d for d in devices if attempt(lambda: reach(d, os.O_RDONLY)) == "ok"))
tell("writable_devices", sorted(d for d in devices if attempt(lambda: reach(d, os.O_RDWR)) == "ok"))
tell("serial", open("/sys/block/vda/serial").read())
families = ["AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_UNIX", "AF_VSOCK"]
tell("families", [f for f in families
                  if attempt(lambda: socket.socket(getattr(socket, f), socket.SOCK_STREAM).close())
                  == "ok"])
tell("executable", attempt(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)))
tell("identity", attempt(lambda: os.setuid(1)))
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status"))
tell("status", {k: status[k].strip() for k in ("CapBnd", "CapEff", "NoNewPrivs", "Seccomp")})
for name in ("sqlite3", "asyncio", "blake3", "cryptography.x509", "dcap_qvl", "nats", "httpx",
             "zipnet.roles.server"):
    __import__(name)
tell("imports", True)

[button] = [p.split("/")[4] for p in glob.glob("/sys/class/input/event*/device/name")
            if open(p).read() == "Power Button\\n"]
event = os.open("/dev/input/" + button, os.O_RDONLY)
listening = {}
for port in (7744, 9464, 8080):
    listener = socket.create_server(("", port))
    listening[listener] = str(port).encode()
while not os.path.exists("/run/witness"):
    time.sleep(0.1)
tell("ready", True)
while True:
    ready, _, _ = select.select([*listening, event], [], [])
    if event in ready:
        kind, code, value = struct.unpack("HHi", os.read(event, 24)[16:])
        if (kind, code, value) == (1, 116, 1):
            sys.exit(0)
        continue
    for listener in ready:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(listening[listener])
"""


def names(found: dict[str, Entry], pattern: str) -> set[str]:
    return {match[1] for name in found if (match := re.fullmatch(pattern, name))}


def test_units_that_start_by_themselves(members: dict[Role, dict[str, Entry]]) -> None:
    for role, found in members.items():
        enabled = names(found, r"etc/systemd/system/(.+\.(?:wants|requires)/.+)")
        assert enabled == {
            f"multi-user.target.wants/zipnet-{role}@appliance.service",
            "multi-user.target.wants/systemd-networkd.service",
            "network-online.target.wants/systemd-networkd-wait-online.service",
            "sockets.target.wants/systemd-networkd.socket",
            "sysinit.target.wants/systemd-network-generator.service",
        }
        assert names(found, r"usr/lib/systemd/system/.+\.(?:wants|requires)/(.+)") == {
            "sys-kernel-config.mount",
            "systemd-journald-dev-log.socket",
            "systemd-journald.service",
            "systemd-journald.socket",
            "systemd-modules-load.service",
            "systemd-sysctl.service",
            "systemd-tmpfiles-setup-dev-early.service",
            "systemd-tmpfiles-setup-dev.service",
            "systemd-tmpfiles-setup.service",
            "systemd-udev-trigger.service",
            "systemd-udevd-control.socket",
            "systemd-udevd-kernel.socket",
            "systemd-udevd.service",
            "tmp.mount",
        }
        generators = names(found, r"usr/lib/systemd/system-generators/(.+)")
        assert generators == {"systemd-fstab-generator"}


def test_kernel_modules(members: dict[Role, dict[str, Entry]]) -> None:
    for found in members.values():
        modules = names(found, r"usr/lib/modules/.*/([^/]+)\.ko(?:\.xz)?")
        assert modules == {
            *("button", "evdev"),
            *("configfs", "tdx-guest", "tsm"),
            "efivarfs",
            *("failover", "net_failover", "virtio-rng", "virtio_blk", "virtio_net"),
            *("libcrc32c", "nf_conntrack", "nf_defrag_ipv4", "nf_defrag_ipv6", "nf_tables"),
            *("nfnetlink", "nft_ct"),
        }


def test_scores_of_our_units(
    members: dict[Role, dict[str, Entry]], toolbox: Toolbox, tmp_path: Path
) -> None:
    loader, option, libraries, program = toolbox.tools.command("usr/bin/systemd-analyze")
    more = toolbox.tools.folder / "usr/lib/x86_64-linux-gnu/systemd"
    command = [loader, option, f"{libraries}:{more}", program, "security", "--offline=true"]
    for role, found in members.items():
        ours = names(found, r"usr/lib/systemd/system/(zipnet-[^/]+)")
        assert ours == {f"zipnet-{role}@.service", "zipnet-firewall.service"}
        for name in ours:
            path = tmp_path / name.replace("@", "@appliance")
            path.write_bytes(found[f"usr/lib/systemd/system/{name}"].data)
            done = subprocess.run(
                [*command, "--no-pager", f"--threshold={EXPOSURE}", path],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            assert "Overall exposure level" in done.stdout, done.stderr
            assert done.returncode == 0, done.stdout


@dataclass(frozen=True, slots=True)
class Seen:
    """What one boot of a production server showed."""

    facts: dict[str, Any]
    answers: dict[int, bytes | None]
    end: str | None


def answer(port: int) -> bytes | None:
    """What a connection hears; None for silence. QEMU accepts for the guest."""
    with socket.create_connection(("127.0.0.1", port), timeout=SILENCE_SECONDS) as connection:
        try:
            return connection.recv(16)
        except TimeoutError:
            return None


def press_power_button(control: Path) -> None:
    """Over QEMU's machine protocol (QMP)."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(control))
        stream = connection.makefile("rwb")
        assert b"QMP" in stream.readline()
        for command in ("qmp_capabilities", "system_powerdown"):
            stream.write(json.dumps({"execute": command}).encode() + b"\n")
            stream.flush()
            while b'"return"' not in stream.readline():
                pass


@pytest.fixture(scope="module")
def seen(server: Image, toolbox: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    work = tmp_path_factory.mktemp("witness")
    disk, control = work / "state", work / "qmp"
    with disk.open("wb") as file:
        file.truncate(DISK_SIZE)
    devices = (
        *("-drive", f"if=none,id=s,format=raw,file={disk}"),
        *("-device", "virtio-blk-pci,drive=s,serial=zipnet-state"),
        *("-chardev", "null,id=c", "-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=c,name=org.zipnet.mock-td"),
        *("-qmp", f"unix:{control},server=on,wait=off"),
    )
    files = beside(OUTSIDE) | instead(Role.SERVER, INSIDE)
    forward = (*ALLOWED, CLOSED)
    with running(toolbox, server, work, files, forward=forward, devices=devices) as guest:
        said = facts(guest.until("^witness ready true"))
        answers = {port: answer(guest.ports[port]) for port in forward}
        press_power_button(control)
        end = guest.until(r"reboot: Power down", STOP_SECONDS).matched
    return Seen(said, answers, end)


def test_only_the_appliance_s_ports_answer(seen: Seen) -> None:
    """It listened at all three of them."""
    assert seen.answers == {7744: b"7744", 9464: b"9464", CLOSED: None}
    assert not set(seen.facts["listeners"]) - {"udp/68"}


def test_the_power_button_ends_it(seen: Seen) -> None:
    assert seen.end


def test_nothing_is_writable_but_memory_of_its_own(seen: Seen) -> None:
    assert seen.facts["root"] == "ro"
    assert seen.facts["writable"] == ["/dev/shm", "/run/zipnet", "/tmp", "/var/tmp"]
    assert seen.facts["knobs"] == []
    assert seen.facts["tsm"] == "ENXIO"


def test_its_devices(seen: Seen) -> None:
    def plain(name: str) -> list[str]:
        """Without the numbers, which the kernel gives as it finds devices."""
        return sorted({re.sub(r"\d[\dp]*$", "", path) for path in seen.facts[name]})

    assert plain("writable_devices") == ["/dev/console", "/dev/urandom", "/dev/vda", "/dev/vport"]
    assert set(plain("readable")) == {*plain("writable_devices"), "/dev/input/event"}
    assert seen.facts["serial"].strip() == "zipnet-state"


def test_its_privileges(seen: Seen) -> None:
    none = "0" * 16
    wanted = {"CapBnd": none, "CapEff": none, "NoNewPrivs": "1", "Seccomp": "2"}
    assert seen.facts["status"] == wanted
    assert seen.facts["families"] == ["AF_INET", "AF_INET6", "AF_UNIX"]
    assert seen.facts["executable"] == "EACCES"
    assert seen.facts["identity"] == "EPERM"
    assert seen.facts["lockdown"] == "confidentiality"
    # All of it with the libraries that a node uses.
    assert seen.facts["imports"] is True


def test_the_running_system(seen: Seen) -> None:
    assert seen.facts["failed"] == []
    assert seen.facts["open_to_all"] == []
    assert seen.facts["privileged"] == []
    assert "zipnet-firewall.service" in seen.facts["active"]
    ours = {"zipnet-server@appliance.service", "zipnet-firewall.service", "witness.service"}
    others = {name for name in seen.facts["active"] if not name.startswith("systemd-")}
    assert others <= ours, others
    assert {"nf_tables", "nft_ct", "evdev", "button", "virtio_blk"} <= set(seen.facts["modules"])


LATER = """
import json, os, subprocess, time
names = ["zipnet-firewall.service", "zipnet-server@appliance.service", "systemd-networkd.service"]
def states():
    command = ["systemctl", "show", "--property=ActiveState", "--value", *names]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.split()
while "activating" in states():
    time.sleep(0.2)
print("witness states", json.dumps(states()), flush=True)
print("witness up", json.dumps([n for n in os.listdir("/sys/class/net") if n != "lo"
      and int(open(f"/sys/class/net/{n}/flags").read(), 16) & 1]), flush=True)
print("witness done true", flush=True)
"""


def test_without_the_firewall_there_is_no_network_and_no_role(
    server: Image, toolbox: Toolbox, tmp_path: Path
) -> None:
    files = beside(LATER) | {
        "usr/lib/zipnet/firewall.nft": text("table inet zipnet { nonsense }\n")
    }
    with running(toolbox, server, tmp_path, files) as guest:
        said = facts(guest.until("^witness done true", LIMIT))
    assert said == {"states": ["failed", "inactive", "inactive"], "up": [], "done": True}
