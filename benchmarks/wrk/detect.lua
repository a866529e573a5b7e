-- POST /v1/detect for wrk (or a GET), and the result as one JSON line.
--
-- Read from the environment:
--   BENCH_RUN          a tag that no other run has
--   BENCH_HEADERS      "Name: value" lines
--   BENCH_CONNECTIONS  how many wrk opens
--   BENCH_TEXT         "unique": another text for each request, so no cache can help; "same": one
--   BENCH_TEXT_CHARS   how long a text is at least
--   BENCH_GET          a path to GET instead
--   BENCH_KEYS         a file of API keys, one of which each request takes at random
--   BENCH_RATE         how many requests a second all connections together offer, each pausing
--                      for a random time after every answer; none: as many as are answered
--   BENCH_SAMPLE       "1": print the first answer that is not 200, which costs time and only
--                      serves to explain a failed run

local run = os.getenv("BENCH_RUN") or "0"
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
local rate = tonumber(os.getenv("BENCH_RATE") or "")
local beginning = (rate and 1 or 5) * tonumber(os.getenv("BENCH_CONNECTIONS") or "32")
local sent = 0

local before = '{"text":"Message '
local after = '. Please read the attached report, list its three main findings in plain words, '
  .. 'and say which of them the team should look at before the release on Friday."}'
local length = tonumber(os.getenv("BENCH_TEXT_CHARS") or "0")
local sentence = " The figures of the last quarter are in the second table, with all their sources."
local padding = sentence:rep(math.ceil(length / #sentence)):sub(1, math.max(length - 200, 0))
after = after:sub(1, -3) .. padding .. after:sub(-2)
local counter = 0

if rate then
  local mean_ms = 1000 * tonumber(os.getenv("BENCH_CONNECTIONS")) / rate
  function delay() return math.random(0, 2 * mean_ms) end
end

local keys = {}
if (os.getenv("BENCH_KEYS") or "") ~= "" then
  for key in io.lines(os.getenv("BENCH_KEYS")) do keys[#keys + 1] = key end
end

local get = os.getenv("BENCH_GET")

function request()
  sent = sent + 1
  if unique then counter = sent end
  local renew = sent <= beginning or sent % 100 == 0
  if get then return wrk.format("GET", get, renew and renewing or headers) end
  if #keys > 0 then
    headers["X-API-Key"] = keys[math.random(#keys)]
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
  print(string.format(
    'RESULT {"requests":%d,"duration_us":%d,"p50_us":%d,"p95_us":%d,"p99_us":%d,"max_us":%d,'
      .. '"errors":{"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d}}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(95),
    latency:percentile(99), latency.max, errors.connect, errors.read, errors.write,
    errors.timeout, errors.status))
end
