"""The GPU check: is the code right and fast on the GPU of this machine? One command, one table.

    python tests/benchmarks/gpu_check [--out FOLDER] [--wheels FOLDER] [--tiny]

Each task runs in a process of its own under a time limit and writes a line of JSON for each thing
it has found as soon as it has; what fails or does not end costs no other its result. --tiny does
all of it at small sizes, on a CPU too. Ends with code 1 where a task failed or a bound was missed.
"""
