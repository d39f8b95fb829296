"""Google Cloud Storage's protocol on this machine, in memory: gcp-storage-emulator and two parts.

tensorstore's commits rest on both, and the emulator lacks them: a read names the object's
generation, and a write may ask for one (``ifGenerationMatch``; 0: there is none yet).

    python -m tests.mesh.bucket PORT
"""

import sys
import threading
import time
from http import HTTPStatus
from typing import Any

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

read = objects.download
write = objects.insert
one_at_a_time = threading.Lock()


def generation(storage: Any, bucket: str, name: str) -> str:
    try:
        return storage.get_file_obj(bucket, name)["generation"]
    except NotFound:
        return "0"


def download(request: Any, response: Any, storage: Any, *args: Any, **kwargs: Any) -> None:
    with one_at_a_time:
        bucket = request.params["bucket_name"]
        name = request.params["object_id"]
        response["x-goog-generation"] = generation(storage, bucket, name)
        read(request, response, storage, *args, **kwargs)


def insert(request: Any, response: Any, storage: Any, *args: Any, **kwargs: Any) -> None:
    with one_at_a_time:
        wanted = request.query.get("ifGenerationMatch")
        name = request.query.get("name")
        if wanted and name:
            current = generation(storage, request.params["bucket_name"], name[0])
            if wanted[0] != current:
                response.status = HTTPStatus.PRECONDITION_FAILED
                return
        write(request, response, storage, *args, **kwargs)


def main(port: int) -> None:
    objects.download = download
    objects.insert = insert
    # The server takes the functions when it is imported.
    from gcp_storage_emulator.server import create_server

    create_server("localhost", port, in_memory=True, default_bucket="bucket").start()
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main(int(sys.argv[1]))
