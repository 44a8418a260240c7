"""One round of what Python's own library does, for each line that asks for it: prints the seconds that each took."""
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor


def increment(n):
    return n + 1


def spin(_):
    begun = time.perf_counter()
    while time.perf_counter() - begun < 0.001:
        pass


def give_back(end):
    while (message := end.recv()) is not None:
        if not isinstance(message, tuple):
            end.send(message)


def main():
    fork = multiprocessing.get_context("fork")
    spawn = multiprocessing.get_context("spawn")
    pool = fork.Pool(2)
    executor = ProcessPoolExecutor(2, mp_context=fork)
    list(executor.map(increment, range(100)))
    ours, theirs = fork.Pipe()
    other = fork.Process(target=give_back, args=(theirs,), daemon=True)
    other.start()

    def start(context):
        process = context.Process(target=increment, args=(1,))
        process.start()
        process.join()

    def executor_many():
        for future in [executor.submit(increment, n) for n in range(2000)]:
            future.result()

    def pool_many():
        for result in [pool.apply_async(increment, (n,)) for n in range(10000)]:
            result.get()

    def pipe_way():
        for n in range(10000):
            ours.send((n, 1, 2, 3))
        ours.send(0)
        ours.recv()

    def pipe(message):
        ours.send(message)
        ours.recv()

    rounds = {
        "pool one": (200, lambda: [pool.apply(increment, (n,)) for n in range(200)]),
        "executor one": (200, lambda: [executor.submit(increment, n).result() for n in range(200)]),
        "pool many": (10000, pool_many),
        "executor many": (2000, executor_many),
        "executor jobs": (1, lambda: list(executor.map(spin, range(200)))),
        "fork": (1, lambda: start(fork)),
        "spawn": (1, lambda: start(spawn)),
        "pipe one": (200, lambda: [pipe(n) for n in range(200)]),
        "pipe way": (10000, pipe_way),
        "pipe 1048576": (5, lambda: [pipe(bytes(1 << 20)) for _ in range(5)]),
        "pipe 67108864": (1, lambda: pipe(bytes(64 << 20))),
    }
    for line in sys.stdin:
        count, work = rounds[line.strip()]
        begun = time.perf_counter()
        work()
        print((time.perf_counter() - begun) / count, flush=True)


if __name__ == "__main__":
    main()
