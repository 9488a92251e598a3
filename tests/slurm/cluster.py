"""A SLURM cluster of one node on 127.0.0.1, in a temporary folder, for as long as
a ``with`` block lasts.
"""

import ctypes
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

PROGRAMS = {
    "munge": ("munged",),
    "slurm-wlm": ("slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "sinfo"),
}
# the daemons' places on Debian
SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
PR_SET_CHILD_SUBREAPER = 36

CONFIGURATION = """\
ClusterName=check
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also the time a requeued job waits; the default is 120 s
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue_delay}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
# no cgroups, no accounting: an ordinary machine has neither
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
# one job at a time fills the node, so that a job of the other partition must preempt it
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=5,sched_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=10
MinJobAge=600
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 PreemptMode=REQUEUE \\
    GraceTime={grace} MaxTime=60
PartitionName=abrupt Nodes={host} PriorityTier=1 PreemptMode=REQUEUE GraceTime=0 MaxTime=60
PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=OFF MaxTime=60
"""


class ClusterError(Exception):
    """Programs are missing, a daemon does not start, or SLURM refuses a command."""


class Cluster:
    """Starts munged, slurmctld and slurmd on entry; ends every process that came
    from this one on exit.

    Args:
        grace: seconds between the SIGTERM of a preemption and the end of the job in partition
            ``low``; in ``abrupt`` there are none, which is SLURM's default.
        requeue_delay: seconds before a requeued job may start.

    Raises:
        ClusterError: programs are missing, or the node does not come up.
    """

    def __init__(self, *, grace: int = 15, requeue_delay: int = 10) -> None:
        self.grace, self.requeue_delay = grace, requeue_delay
        self.daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Cluster":
        refuse_without_programs()
        adopt_orphans()
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-check-"))
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _start(self) -> None:
        folder, key = self.folder, self.folder / "munge.key"
        for name in ("state", "spool"):
            (folder / name).mkdir()
        folder.chmod(0o755)  # munged refuses a socket that others could not reach
        key.touch(mode=0o400)
        key.chmod(0o600)
        key.write_bytes(secrets.token_bytes(128))
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))},
            "PATH": SYSTEM_PATH,
            "SLURM_CONF": str(folder / "slurm.conf"),
        }
        host = socket.gethostname().split(".")[0]
        controller_port, node_port = free_ports(2)
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=host,
                user=pwd.getpwuid(os.getuid()).pw_name,
                folder=folder,
                controller_port=controller_port,
                node_port=node_port,
                grace=self.grace,
                requeue_delay=self.requeue_delay,
            )
        )
        self._daemon(
            "munged",
            "--foreground",
            "--force",  # the folder of a temporary file is not what munged calls secure
            f"--key-file={key}",
            f"--socket={folder}/munge.socket",
            f"--pid-file={folder}/munged.pid",
            f"--seed-file={folder}/munged.seed",
            "--num-threads=2",
        )
        self._wait("munged", lambda: (folder / "munge.socket").exists())
        self._daemon("slurmctld", "-D", "-i")
        self._daemon("slurmd", "-D", "-N", host)
        self._wait(
            "the node", lambda: self.output("sinfo", "--noheader", "--format=%T").strip() == "idle"
        )

    def _daemon(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.out").open("wb") as stream:
            self.daemons.append(
                subprocess.Popen(
                    [name, *arguments],
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    # Ctrl-C is for the script, which then stops them in order
                    start_new_session=True,
                )
            )

    def _wait(self, what: str, ready: Callable[[], bool], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end or any(daemon.poll() is not None for daemon in self.daemons):
                raise ClusterError(f"{what} did not come up:\n{self.logs()}")
            time.sleep(0.2)

    def output(self, *command: str) -> str:
        """What one of SLURM's programs prints; empty where it fails."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )
        return done.stdout if done.returncode == 0 else ""

    def submit(self, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
        """``sbatch`` with these arguments; returns the number of the job."""
        done = subprocess.run(
            ["sbatch", "--parsable", *arguments],
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ClusterError(f"sbatch failed: {done.stderr.strip()}")
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """The fields that ``scontrol show job`` prints: JobState, Restarts, ExitCode and so on."""
        shown = self.output("scontrol", "--oneliner", "show", "job", number)
        return dict(field.split("=", 1) for field in shown.split() if "=" in field)

    def logs(self) -> str:
        """The last lines of every daemon's log."""
        parts = []
        for path in sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")]):
            lines = path.read_text(errors="replace").splitlines()[-15:]
            parts.append("\n".join([f"--- {path.name}", *lines]))
        return "\n".join(parts)

    def stop(self) -> None:
        """End the jobs, the daemons and whatever they left, and remove the folder."""
        user = pwd.getpwuid(os.getuid()).pw_name
        if len(self.daemons) == 3:
            self.output("scancel", "--signal=KILL", "--full", f"--user={user}")
            self.output("scancel", f"--user={user}")
        for daemon in reversed(self.daemons):
            end(daemon)
        kill_descendants()
        shutil.rmtree(self.folder, ignore_errors=True)


def refuse_without_programs() -> None:
    """Raise ClusterError where SLURM or munge is not installed; nothing is installed here."""
    missing = [
        package
        for package, names in PROGRAMS.items()
        if not all(shutil.which(n, path=SYSTEM_PATH) for n in names)
    ]
    if missing:
        raise ClusterError(
            f"this check needs the Debian packages {' and '.join(PROGRAMS)}; missing: {missing[0]}"
        )


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def adopt_orphans() -> None:
    """Make this process the parent of grandchildren that lose theirs: slurmd detaches the
    processes of its jobs.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise ClusterError(f"this system gives us no orphans: {os.strerror(ctypes.get_errno())}")


def end(process: subprocess.Popen[bytes], seconds: float = 15) -> None:
    """SIGTERM, and SIGKILL where that is not enough."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def kill_descendants() -> None:
    """Kill every process that came from this one, until there is none."""
    while found := descendants():
        for process in found:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        time.sleep(0.1)


def descendants() -> list[int]:
    """Children, their children and so on."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):  # it ended meanwhile
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, queue = [], [os.getpid()]
    while queue:
        queue += (below := children.get(queue.pop(), []))
        found += below
    return found
