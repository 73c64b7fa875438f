// A worker of Weft made from its contracts alone: attaches to a queue, runs its tasks and
// reports what became of them, until SIGTERM.
//
//   node worker.js ADDRESS_FILE PROTO_FOLDER GOOGLE_APIS_FOLDER QUEUE WORKER_ID
//
// ADDRESS_FILE says where the scheduler is; it is read again before each attaching, since it may
// come back elsewhere. WEFT_API_KEY in the environment holds the key. Each line on stdout is a
// JSON document.
'use strict';

const fs = require('fs');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const RECONNECT_MS = 100;
const RECONNECT_MS_MAX = 5000;
const OPTIONS = { 'grpc.enable_http_proxy': 0, 'grpc.keepalive_time_ms': 10000 };
// Attaching again wouldn't help.
const REFUSED = ['UNAUTHENTICATED', 'PERMISSION_DENIED', 'INVALID_ARGUMENT', 'NOT_FOUND', 'UNIMPLEMENTED'];

class Failure extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

// What it can do: each gets the task and a signal that is aborted when the task is cancelled.
const HANDLERS = {
  echo: async (task) => task.payload,
  // As many milliseconds as the payload says.
  wait: (task, signal) =>
    new Promise((resolve, reject) => {
      const timer = setTimeout(() => resolve(task.payload), Number(task.payload));
      signal.addEventListener('abort', () => {
        clearTimeout(timer);
        reject(new Failure(grpc.status.CANCELLED, 'cancelled'));
      });
    }),
  refuse: async () => {
    throw new Failure(grpc.status.INVALID_ARGUMENT, 'not such a one');
  },
};

function print(document) {
  process.stdout.write(`${JSON.stringify(document)}\n`);
}

class Worker {
  constructor(service, addressFile, queue, workerId) {
    this.service = service;
    this.addressFile = addressFile;
    this.queue = queue;
    this.workerId = workerId;
    this.running = new Map(); // what it has, by task and attempt, until the scheduler has the report
    this.stopping = false;
    this.stream = null;
    this.wake = () => {};
  }

  async work() {
    let failures = 0;
    while (!this.done()) {
      const { code, attached } = await this.attachOnce();
      if (REFUSED.includes(grpc.status[code])) {
        throw new Error(`refused: ${grpc.status[code]}`);
      }
      print({ detached: grpc.status[code] });
      failures = attached ? 0 : failures + 1;
      if (!this.done()) {
        await this.pause(Math.random() * Math.min(RECONNECT_MS_MAX, RECONNECT_MS * 2 ** failures));
      }
    }
  }

  // Takes no more tasks, and ends when those that it has are done and reported.
  stop() {
    this.stopping = true;
    this.say({ slots: { slots: 0 } });
    this.leaveIfDone();
    this.wake();
  }

  done() {
    return this.stopping && this.running.size === 0;
  }

  pause(milliseconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  attachOnce() {
    return new Promise((resolve) => {
      const address = fs.readFileSync(this.addressFile, 'utf8');
      const client = new this.service(address, grpc.credentials.createInsecure(), OPTIONS);
      const sent = new grpc.Metadata();
      sent.set('authorization', `Bearer ${process.env.WEFT_API_KEY}`);
      let attached = false;
      let beat = null;
      const stream = client.Attach(sent);
      this.stream = stream;
      stream.on('data', (message) => {
        if (message.welcome) {
          attached = true;
          const interval = message.welcome.heartbeat_interval;
          const milliseconds = Number(interval.seconds) * 1000 + interval.nanos / 1e6;
          beat = setInterval(() => this.heartbeat(), milliseconds);
        }
        this.take(message);
      });
      stream.on('error', () => {}); // 'status' tells the same
      stream.on('status', ({ code }) => {
        clearInterval(beat);
        this.stream = null;
        client.close();
        resolve({ code, attached });
      });
      this.say({ hello: this.hello() });
      for (const { report } of this.running.values()) {
        if (report) {
          this.say(report);
        }
      }
    });
  }

  hello() {
    return {
      worker_id: this.workerId,
      capabilities: Object.keys(HANDLERS),
      slots: this.stopping ? 0 : 4,
      running: [...this.running.values()].map(({ task, attempt }) => ({ task, attempt })),
    };
  }

  say(message) {
    if (this.stream) {
      this.stream.write({ queue: this.queue, ...message });
    }
  }

  heartbeat() {
    const running = [...this.running.values()].map(({ task, attempt }) => ({ task, attempt, progress: 0.5 }));
    this.say({ heartbeat: { running } });
  }

  take(message) {
    if (message.welcome) {
      print({ welcome: message.welcome.worker_id, goes_on_with: [...this.running.values()].map(({ task }) => task) });
      for (const [key, { task, abort }] of this.running) {
        if (message.welcome.lost.includes(task)) {
          this.running.delete(key);
          abort.abort();
        }
      }
    } else if (message.assignment) {
      this.begin(message.assignment);
    } else if (message.cancel) {
      const running = this.running.get(keyOf(message.cancel));
      if (running) {
        running.abort.abort();
      }
    } else if (message.recorded) {
      const { task, attempt, stale } = message.recorded;
      print({ recorded: task, attempt, stale });
      this.running.delete(keyOf(message.recorded));
      this.leaveIfDone();
    } else if (message.drain) {
      // The scheduler ends; what runs is reported to the next.
      this.stream.end();
    }
  }

  async begin(assignment) {
    const { task, attempt, capability } = assignment;
    const key = keyOf(assignment);
    if (this.running.has(key)) {
      return;
    }
    const abort = new AbortController();
    const running = { task, attempt, abort, report: null };
    this.running.set(key, running);
    if (this.stopping) {
      this.report(running, { failed: { task, attempt, code: grpc.status.CANCELLED, released: true } });
      return;
    }
    print({ begun: task, attempt, capability });
    try {
      const result = await HANDLERS[capability](assignment, abort.signal);
      this.report(running, { succeeded: { task, attempt, result } });
    } catch (error) {
      const code = error.code || grpc.status.INTERNAL;
      this.report(running, { failed: { task, attempt, code, message: error.message } });
    }
  }

  report(running, report) {
    running.report = report;
    if (this.running.get(keyOf(running)) === running) {
      this.say(report);
    }
  }

  leaveIfDone() {
    if (this.done() && this.stream) {
      this.stream.end();
    }
  }
}

function keyOf({ task, attempt }) {
  return `${task} ${attempt}`;
}

async function main([addressFile, protos, googleApis, queue, workerId]) {
  const options = { includeDirs: [protos, googleApis], keepCase: true, longs: String, enums: String, defaults: true, oneofs: true };
  const loaded = protoLoader.loadSync(['weft/scheduler/v1/worker_service.proto'], options);
  const { WorkerService } = grpc.loadPackageDefinition(loaded).weft.scheduler.v1;
  const worker = new Worker(WorkerService, addressFile, queue, workerId);
  process.on('SIGTERM', () => worker.stop());
  await worker.work();
}

main(process.argv.slice(2)).catch((error) => {
  process.stderr.write(`${error.message}\n`);
  process.exitCode = 1;
});
