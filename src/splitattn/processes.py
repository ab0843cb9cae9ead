"""Processes that end with the one that started them."""

import os
from multiprocessing import parent_process
from threading import Thread


def end_with_parent() -> None:
    """End this process when the one that started it does, however that ends.

    A process that is killed tells its workers nothing, and one that waits for it waits forever.
    """
    if parent := parent_process():

        def wait() -> None:
            parent.join()
            os._exit(1)

        Thread(target=wait, daemon=True).start()
