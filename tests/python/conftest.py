"""Fixtures of the CUDA suite; see cuda_support.py."""

import pytest


def pytest_generate_tests(metafunc):
    if "cuda" in metafunc.fixturenames:
        from cuda_support import backends

        where = metafunc.config.getoption("--cuda")
        found = backends(where)
        if where == "gpu" and not found:
            pytest.exit("--cuda gpu: neither torch nor cupy finds a GPU", returncode=1)
        none = pytest.param(None, marks=pytest.mark.skip(reason="needs FASTFFN_EMULATED_PLUGIN=path, or --cuda gpu"))
        metafunc.parametrize(
            "cuda", found or [none], indirect=True, ids=[b.name for b in found] or ["none"], scope="session"
        )


def pytest_collection_modifyitems(items):
    # `-m quick`, for slow ways to run kernels such as compute-sanitizer: of each test on a device its first parameters.
    seen = set()
    for item in items:
        if "cuda" not in getattr(item, "fixturenames", ()):
            continue
        backend = item.callspec.params["cuda"]
        if (item.path, item.originalname, backend) not in seen:
            seen.add((item.path, item.originalname, backend))
            item.add_marker(pytest.mark.quick)


@pytest.fixture
def cuda(request):
    """A device to test on."""
    from fastffn import _core

    report = _core.cuda()
    assert report["available"], report["reason"]
    return request.param()


@pytest.fixture
def gpu(request):
    """torch, where tests run on a GPU; other tests are for hardware alone."""
    if request.config.getoption("--cuda") != "gpu":
        pytest.skip("needs a GPU: --cuda gpu")
    torch = pytest.importorskip("torch")
    assert torch.cuda.is_available()
    return torch
