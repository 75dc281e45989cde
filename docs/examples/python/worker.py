"""A worker: takes the tasks of a queue from any node of a cluster, and does them. See README.md."""

import argparse
import json
import queue
import random
import socket
import threading
import time
import uuid

import grpc
from orchestra.v1 import workers_pb2 as pb
from orchestra.v1 import workers_pb2_grpc as rpc


def do(task_input, task):
    """What the worker is for. An exception fails the attempt; the step's `retry` decides about the next."""
    return {"echo": task_input, "attempt": task.attempt}


class Worker:
    def __init__(self, queues, capacity):
        self.queues, self.capacity = queues, capacity
        self.instance = uuid.uuid4().hex  # The same over all connections of this run.
        self.lock = threading.Lock()
        self.running = set()  # Task ids that are being done.
        self.unrecorded = {}  # Outcomes that the cluster may not know yet.
        self.outgoing = queue.SimpleQueue()

    def run(self, addresses):
        number, pause = random.randrange(len(addresses)), 0.05
        while True:
            began, number = time.monotonic(), number + 1
            try:
                self.connection(addresses[number % len(addresses)])
            except grpc.RpcError as error:
                print("connection:", error.code().name, error.details())
            if time.monotonic() - began > 1:
                pause = 0.05
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, 1)

    def connection(self, address):
        self.outgoing = outgoing = queue.SimpleQueue()
        with self.lock:
            in_hand, kept = [*self.running, *self.unrecorded], list(self.unrecorded.values())
        hello = pb.Hello(name=socket.gethostname(), instance=self.instance, queues=self.queues,
                         capacity=self.capacity, in_hand=in_hand)
        outgoing.put(pb.FromWorker(hello=hello))
        with grpc.insecure_channel(address) as channel:
            orders = rpc.WorkerServiceStub(channel).Work(iter(outgoing.get, None))
            try:
                for order in orders:
                    kind = order.WhichOneof("message")
                    if kind == "welcome":
                        print("connected to", address)
                        for outcome in kept:
                            outgoing.put(pb.FromWorker(outcome=outcome))
                        every = order.welcome.lease_ms / 4000
                        threading.Thread(target=self.beat, args=(orders, outgoing, every), daemon=True).start()
                    elif kind == "task":
                        self.running.add(order.task.id)
                        threading.Thread(target=self.work, args=(order.task,), daemon=True).start()
                    elif kind in ("recorded", "revoked"):
                        with self.lock:
                            self.unrecorded.pop(getattr(order, kind), None)
                            self.running.discard(getattr(order, kind))
                    elif kind == "leave":
                        return
            finally:
                outgoing.put(None)

    def beat(self, orders, outgoing, interval):
        while orders.is_active():
            outgoing.put(pb.FromWorker(heartbeat=pb.Heartbeat()))
            time.sleep(interval)

    def work(self, task):
        try:
            result = {"output_json": json.dumps(do(json.loads(task.input_json), task))}
        except Exception as error:  # Whatever it is, the cluster is told.
            result = {"failure": pb.TaskFailure(code="exception", message=repr(error))}
        outcome = pb.Outcome(task=task.id, **result)
        with self.lock:
            if task.id not in self.running:  # Revoked: nobody wants to know.
                return
            self.running.remove(task.id)
            self.unrecorded[task.id] = outcome
        self.outgoing.put(pb.FromWorker(outcome=outcome))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--queue", action="append", required=True)
    parser.add_argument("--capacity", type=int, default=4)
    parser.add_argument("addresses", nargs="+", help="host:port of gRPC, any node")
    args = parser.parse_args()
    Worker(args.queue, args.capacity).run(args.addresses)
