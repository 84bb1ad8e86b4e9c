"""Fixtures of several test files: a share on a real S3 server, a dataset and its trainers."""

import signal

import pytest
from dask.system import CPU_COUNT

from tests.datasets import write_scores
from tests.forks import Forks

# A shell that starts the tests in the background makes them, and their processes, ignore Ctrl-C;
# nohup does so with SIGHUP.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)  # pytest-xdist may not be installed
def pytest_xdist_auto_num_workers() -> int:
    """Two workers per core: many tests wait for child processes."""
    return 2 * CPU_COUNT


@pytest.fixture(scope="module")
def s3():
    """A bucket on a real server on this machine; yields its URL."""
    import boto3  # a second of imports that most tests do not need
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="lab")
        S3FileSystem.clear_instance_cache()  # those of stopped servers
        yield "s3://lab"
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def share(request, tmp_path) -> str:
    """The path or URL of an empty share."""
    if request.param == "folder":
        return str(tmp_path / "share")
    return f"{request.getfixturevalue('s3')}/{tmp_path.name}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small dataset."""
    root = tmp_path_factory.mktemp("place")
    write_scores(root)
    return root


@pytest.fixture(scope="module")
def forks(place):
    """A server that runs training commands in that folder, in processes that can be killed."""
    program = Forks(place)
    yield program
    program.close()
