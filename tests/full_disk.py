"A disk without room, for as long as one needs it."
import contextlib
import resource


@contextlib.contextmanager
def files_up_to(size):
    "No file may grow beyond `size` bytes: what a full disk looks like from inside."
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
