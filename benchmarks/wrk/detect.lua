-- POST /v1/detect for wrk (or a GET), and the result as one JSON line.
--
-- Read from the environment:
--   BENCH_RUN          a tag that no other run has
--   BENCH_SEED         a number for what is drawn by chance
--   BENCH_HEADERS      "Name: value" lines
--   BENCH_CONNECTIONS  how many wrk opens
--   BENCH_TEXT         "unique": another text for each request, so no cache can help; "same": one
--   BENCH_TEXT_CHARS   how long a text is at least
--   BENCH_GET          a path to GET instead
--   BENCH_KEYS         a file of API keys, which requests take in turn
--   BENCH_RENEW        "0": leave connections open; they are renewed otherwise
--   BENCH_RATE         how many requests a second all connections together offer, each by a
--                      timetable of its own, for which wrk needs a thread for each connection;
--                      none: as many as are answered
--   BENCH_SAMPLE       "1": print the first answer that is not 200, which costs time and only
--                      serves to explain a failed run

local run = os.getenv("BENCH_RUN") or "0"
local seed = tonumber(os.getenv("BENCH_SEED") or "0")
local threads = {}
local number = 0 -- of this thread, each of which has variables of its own

function setup(thread)
  threads[#threads + 1] = thread
  thread:set("thread_number", #threads)
end

function init()
  number = thread_number
  math.randomseed(seed + number)
end

local unique = (os.getenv("BENCH_TEXT") or "unique") == "unique"
local headers = { ["Content-Type"] = "application/json" }
for name, value in (os.getenv("BENCH_HEADERS") or ""):gmatch("([^:\n]+):%s*([^\n]+)") do
  headers[name] = value
end

-- wrk opens all its connections in one burst, and with a listening socket that workers share, one
-- worker may accept them all and leave the others idle for the whole run. As with real clients,
-- who come and go, connections are therefore renewed: each a few times at the beginning, which
-- spreads them over the workers, and then after a hundred requests or so.
local renewing = {}
for name, value in pairs(headers) do renewing[name] = value end
renewing["Connection"] = "close"
local is_renewed = os.getenv("BENCH_RENEW") ~= "0"
local rate = tonumber(os.getenv("BENCH_RATE") or "")
local connections = tonumber(os.getenv("BENCH_CONNECTIONS") or "32")
local beginning = rate and 1 or 5 * connections
local sent = 0

local before = '{"text":"Message '
local after = '. Please read the attached report, list its three main findings in plain words, '
  .. 'and say which of them the team should look at before the release on Friday."}'
local length = tonumber(os.getenv("BENCH_TEXT_CHARS") or "0")
local sentence = " The figures of the last quarter are in the second table, with all their sources."
local padding = sentence:rep(math.ceil(length / #sentence)):sub(1, math.max(length - 200, 0))
after = after:sub(1, -3) .. padding .. after:sub(-2)
local counter = 0

-- Of each slot of a connection's timetable one moment is drawn. A request that is still not sent
-- then, since the one before is not answered, is measured from that moment: a server that stalls is
-- not asked less for it, and does not look better. What wrk's own timers are late by is left out.
if rate then
  local ffi = require("ffi")
  ffi.cdef [[
    typedef struct { long seconds; long nanoseconds; } bench_time;
    int clock_gettime(int clock, bench_time *time);
  ]]
  local time = ffi.new("bench_time")
  local function now_us()
    ffi.C.clock_gettime(1, time) -- CLOCK_MONOTONIC
    return tonumber(time.seconds) * 1e6 + tonumber(time.nanoseconds) / 1e3
  end

  local slot_us = 1e6 * connections / rate
  local slot, began_at
  took_us = {} -- global, since `done` reads it

  function delay()
    local now = now_us()
    slot = slot and slot + slot_us or now
    local due = slot + math.random() * slot_us
    began_at = due < now and due or nil
    return math.max(0, math.floor((due - now) / 1000 + 0.5))
  end

  function before_sending() began_at = began_at or now_us() end

  function response() took_us[#took_us + 1] = now_us() - began_at end
end

local keys = {}
if (os.getenv("BENCH_KEYS") or "") ~= "" then
  for key in io.lines(os.getenv("BENCH_KEYS")) do keys[#keys + 1] = key end
end

local get = os.getenv("BENCH_GET")
local first_key

function request()
  sent = sent + 1
  if unique then counter = number .. "-" .. sent end
  local renew = is_renewed and (sent <= beginning or sent % 100 == 0)
  if rate then before_sending() end
  if get then return wrk.format("GET", get, renew and renewing or headers) end
  if #keys > 0 then
    first_key = first_key or math.random(#keys)
    headers["X-API-Key"] = keys[(first_key + sent) % #keys + 1]
    renewing["X-API-Key"] = headers["X-API-Key"]
  end
  local body = before .. run .. "-" .. counter .. after
  return wrk.format("POST", nil, renew and renewing or headers, body)
end

if os.getenv("BENCH_SAMPLE") == "1" then
  local shown = 0
  function response(status, _, body)
    if status ~= 200 and shown < 1 then
      shown = shown + 1
      print("SAMPLE " .. status .. " " .. body:sub(1, 600):gsub("%s+", " "))
    end
  end
end

function done(summary, latency, _)
  local errors = summary.errors
  local function at(percent) return latency:percentile(percent) end
  local most = latency.max
  if rate then
    local took = {}
    for _, thread in ipairs(threads) do
      for _, us in ipairs(thread:get("took_us")) do took[#took + 1] = us end
    end
    table.sort(took)
    at = function(percent) return took[math.max(1, math.ceil(#took * percent / 100))] or 0 end
    most = at(100)
  end
  print(string.format(
    'RESULT {"requests":%d,"duration_us":%d,"p50_us":%d,"p95_us":%d,"p99_us":%d,"max_us":%d,'
      .. '"errors":{"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d}}',
    summary.requests, summary.duration, at(50), at(95), at(99), most, errors.connect,
    errors.read, errors.write, errors.timeout, errors.status))
end
