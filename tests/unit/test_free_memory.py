"""What a container may take counts, not what its machine has."""

from types import SimpleNamespace

import pytest

from restkv_local.free_memory import free_memory

MIB = 1 << 20
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "total_active_file")
V2 = ("memory.max", "memory.current", "inactive_file", "active_file")


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000 * MIB))


@pytest.fixture
def belong(tmp_path):
    def write(*lines):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))

    return write


@pytest.fixture
def limit(tmp_path):
    def write(folder, names, limit, used, cached):
        group = tmp_path / "sys/fs/cgroup" / folder
        group.mkdir(parents=True, exist_ok=True)
        (group / names[0]).write_text(f"{limit}\n")
        (group / names[1]).write_text(f"{used * MIB}\n")
        halves = (names[2], cached * MIB // 2), (names[3], cached * MIB // 2)
        (group / "memory.stat").write_text("".join(f"{name} {n}\n" for name, n in halves))

    return write


def test_without_groups_it_is_the_machines(tmp_path):
    assert free_memory(tmp_path) == 1000 * MIB


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [("0::/job/step", "job/step", V2), ("4:cpu,memory:/job/step", "memory/job/step", V1)],
)
def test_a_group_that_may_take_less_decides(tmp_path, belong, limit, line, folder, names):
    belong("9:name=systemd:/", line)
    limit(folder, names, 500 * MIB, 300, 100)
    assert free_memory(tmp_path) == 300 * MIB


def test_the_tightest_group_around_this_process_decides(tmp_path, belong, limit):
    belong("0::/job/step")
    limit("job/step", V2, 900 * MIB, 0, 0)
    limit("job", V2, 400 * MIB, 300, 0)
    limit("other", V2, 1, 0, 0)
    assert free_memory(tmp_path) == 100 * MIB


@pytest.mark.parametrize(("folder", "names"), [("", V2), ("memory", V1)])
def test_a_container_that_sees_only_its_own_group_finds_it(tmp_path, belong, limit, folder, names):
    belong("0::/", "4:memory:/docker/1234")
    limit(folder, names, 200 * MIB, 100, 0)
    assert free_memory(tmp_path) == 100 * MIB


def test_no_limit_is_none(tmp_path, belong, limit):
    belong("0::/job", "4:memory:/job")
    limit("job", V2, "max", 300, 0)
    limit("memory/job", V1, 2**63 - 4096, 300, 0)
    assert free_memory(tmp_path) == 1000 * MIB


def test_a_group_over_its_limit_has_nothing_left(tmp_path, belong, limit):
    belong("0::/job")
    limit("job", V2, 100 * MIB, 300, 0)
    assert free_memory(tmp_path) == 0


def test_what_cannot_be_read_is_no_limit(tmp_path, belong, limit):
    belong("0::/job")
    limit("job", V2, 400 * MIB, 300, 0)
    (tmp_path / "sys/fs/cgroup/job/memory.stat").write_text("anon 1\n")
    assert free_memory(tmp_path) == 100 * MIB
    (tmp_path / "proc/self/cgroup").write_bytes(b"0::/\xff\n")
    assert free_memory(tmp_path) == 1000 * MIB
