"""Google Cloud Storage's protocol on this machine, in memory: gcp-storage-emulator, with the two parts of it that
tensorstore's commits rest on and the emulator has not: a read names the object's generation, and a write may ask
for one (``ifGenerationMatch``; 0: there is none yet).

    python -m tests.bucket PORT
"""

import sys
import threading
import time
from http import HTTPStatus

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

read, write, one_at_a_time = objects.download, objects.insert, threading.Lock()


def generation(storage, bucket, name):
    try:
        return storage.get_file_obj(bucket, name)["generation"]
    except NotFound:
        return "0"


def download(request, response, storage, *args, **kwargs):
    with one_at_a_time:
        response["x-goog-generation"] = generation(
            storage, request.params["bucket_name"], request.params["object_id"]
        )
        read(request, response, storage, *args, **kwargs)


def insert(request, response, storage, *args, **kwargs):
    with one_at_a_time:
        wanted, name = request.query.get("ifGenerationMatch"), request.query.get("name")
        if (
            wanted
            and name
            and wanted[0] != generation(storage, request.params["bucket_name"], name[0])
        ):
            response.status = HTTPStatus.PRECONDITION_FAILED
        else:
            write(request, response, storage, *args, **kwargs)


if __name__ == "__main__":
    objects.download, objects.insert = download, insert
    from gcp_storage_emulator.server import (
        create_server,  # it takes the functions when it is imported
    )

    create_server("localhost", int(sys.argv[1]), in_memory=True, default_bucket="bucket").start()
    while True:
        time.sleep(60)
