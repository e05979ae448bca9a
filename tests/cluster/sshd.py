"""Two ssh hosts on one machine: one sshd that listens on two loopback addresses."""

from __future__ import annotations

import subprocess
from pathlib import Path

from daemons import Daemons, answers, free_port

HOSTS = ("127.0.0.2", "127.0.0.3")


class Sshd:
    """Keys and configuration of its own in `folder`; the user's ~/.ssh is neither read nor written."""

    def __init__(self, folder: Path) -> None:
        self._daemons = Daemons(folder)
        self.hostfile = folder / "hostfile"
        self.hostfile.write_text("".join(f"{host} slots=1\n" for host in HOSTS))
        self._key, self._port = folder / "key", free_port()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._key], check=True)

    @property
    def variables(self) -> dict[str, str]:
        """What makes pdsh's ssh come here."""
        options = (
            f"-F /dev/null -p {self._port} -i {self._key} -o StrictHostKeyChecking=no "
            "-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o BatchMode=yes"
        )
        return {"PDSH_SSH_ARGS_APPEND": options}

    def __enter__(self) -> Sshd:
        folder = self._daemons.folder
        Path("/run/sshd").mkdir(exist_ok=True)
        (folder / "sshd_config").write_text(
            "\n".join(
                [
                    *(f"ListenAddress {host}:{self._port}" for host in HOSTS),
                    f"HostKey {self._key}",
                    f"AuthorizedKeysFile {self._key}.pub",
                    f"PidFile {folder}/sshd.pid",
                    "PermitRootLogin prohibit-password",
                    "PasswordAuthentication no",
                    "StrictModes no",
                    "UsePAM no",
                ]
            )
        )
        self._daemons.start("sshd", "/usr/sbin/sshd", "-D", "-e", "-f", folder / "sshd_config")
        self._daemons.wait_until(lambda: all(answers(host, self._port) for host in HOSTS), "sshd")
        return self

    def __exit__(self, *_: object) -> None:
        self._daemons.stop()
