"""How much memory is free, where a container or a batch system sets a limit."""

import psutil
import pytest

from manifests.budget import free_memory

GIB = 2**30


def write_group(folder, names, limit, use, pages):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, use), strict=True):
        (folder / name).write_text(f"{value}\n")
    key = "inactive_file" if "max" in names[0] else "total_inactive_file"
    (folder / "memory.stat").write_text(f"anon 5\n{key} {pages}\nslab 3\n")


def write_membership(root, line):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"3:cpuset:/\n{line}\n")


V2, V1 = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")


@pytest.mark.parametrize(("names", "mount", "line"), [(V2, "", "0::"), (V1, "memory", "4:memory:")])
def test_the_narrowest_group_decides(tmp_path, names, mount, line):
    write_membership(tmp_path, f"{line}/slurm/job_7")
    top = tmp_path / "sys/fs/cgroup" / mount
    write_group(top / "slurm/job_7", names, 3 * GIB, 2 * GIB, GIB // 2)
    write_group(top / "slurm", names, 8 * GIB, 7 * GIB, 0)
    assert free_memory(tmp_path) == min(GIB, psutil.virtual_memory().available)
    write_group(top / "slurm", names, 8 * GIB, 6 * GIB, 0)
    assert free_memory(tmp_path) == min(3 * GIB // 2, psutil.virtual_memory().available)
    write_group(top / "slurm/job_7", names, GIB, 2 * GIB, 0)
    assert free_memory(tmp_path) == 0


def test_no_limit_and_no_groups(tmp_path):
    machine = psutil.virtual_memory().available
    assert free_memory(tmp_path) == pytest.approx(machine, rel=0.2)
    write_membership(tmp_path, "0::/")
    write_group(tmp_path / "sys/fs/cgroup", V2, "max", GIB, 0)
    assert free_memory(tmp_path) == pytest.approx(machine, rel=0.2)
