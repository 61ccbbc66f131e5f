"""The journal's tables as SQL: how they are made, how version 1 becomes version 2, and what has to hold in them."""

VERSION = 2  # PRAGMA user_version
TABLES = """
CREATE TABLE sends (
    send_id          INTEGER PRIMARY KEY,
    key              TEXT NOT NULL,      -- digest of the call's content
    concept_id       TEXT NOT NULL,
    provider         TEXT NOT NULL,
    model            TEXT NOT NULL,      -- as asked for
    attempt          INTEGER NOT NULL,   -- which ask about the same concept, from 0
    sent_at          TEXT NOT NULL,
    ended_at         TEXT,               -- NULL: in flight, or in doubt
    fault            TEXT,               -- NULL: answered
    run              TEXT,               -- which run sent it
    reserved_nanousd INTEGER NOT NULL DEFAULT 0,  -- the most that it can cost
    cost_nanousd     INTEGER DEFAULT 0,  -- NULL: not known, the reservation counts
    price            TEXT,               -- the list price that it was billed at
    end_number       INTEGER,            -- order of the ends
    latency_s        REAL
);
CREATE TABLE results (
    key         TEXT PRIMARY KEY,
    send_id     INTEGER NOT NULL REFERENCES sends,
    recorded_at TEXT NOT NULL,
    response    TEXT,              -- records.Response as JSON
    fault       TEXT,              -- a ProviderError that is final for the call
    problem     TEXT,
    fix         TEXT
) WITHOUT ROWID;
CREATE TABLE concepts (
    digest  TEXT PRIMARY KEY,
    concept TEXT NOT NULL          -- records.Concept as JSON
) WITHOUT ROWID;
CREATE TABLE verdicts (
    key        TEXT NOT NULL,      -- the call whose answer it is about
    concept    TEXT NOT NULL REFERENCES concepts,
    concept_id TEXT NOT NULL,
    contract   TEXT NOT NULL,      -- digest of the PromptContract that the answer was read under
    verdict    TEXT NOT NULL,      -- accepted, or the reason why not
    score      TEXT NOT NULL,      -- records.Score as JSON
    text       TEXT NOT NULL,      -- the answer as the role writes it
    PRIMARY KEY (key, concept_id)  -- concepts of one text under several ids share a call
);
CREATE INDEX sends_by_key ON sends (key);
CREATE INDEX sends_open ON sends (key) WHERE ended_at IS NULL;
CREATE INDEX sends_by_end ON sends (end_number);
"""
FROM_1 = """
ALTER TABLE sends ADD COLUMN run TEXT;
ALTER TABLE sends ADD COLUMN reserved_nanousd INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sends ADD COLUMN cost_nanousd INTEGER DEFAULT 0;
ALTER TABLE sends ADD COLUMN price TEXT;
ALTER TABLE sends ADD COLUMN end_number INTEGER;
ALTER TABLE sends ADD COLUMN latency_s REAL;
UPDATE sends SET end_number = send_id WHERE ended_at IS NOT NULL;
CREATE TABLE concepts (digest TEXT PRIMARY KEY, concept TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE verdicts (key TEXT NOT NULL, concept TEXT NOT NULL REFERENCES concepts, concept_id TEXT NOT NULL,
                       contract TEXT NOT NULL, verdict TEXT NOT NULL, score TEXT NOT NULL, text TEXT NOT NULL,
                       PRIMARY KEY (key, concept_id));
UPDATE sends SET cost_nanousd = (SELECT CAST(round(coalesce(json_extract(response, '$.usage.cost_usd'), 0) * 1e9)
    AS INTEGER) FROM results WHERE results.send_id = sends.send_id)
    WHERE send_id IN (SELECT send_id FROM results WHERE response IS NOT NULL);
CREATE INDEX sends_open ON sends (key) WHERE ended_at IS NULL;
CREATE INDEX sends_by_end ON sends (end_number);
"""

# What has to hold in every journal: what is wrong -> how many rows show it.
RULES = {
    "results whose send is missing": ("SELECT count(*) FROM results WHERE send_id NOT IN (SELECT send_id FROM sends)"),
    "results whose send has no end": (
        "SELECT count(*) FROM results JOIN sends USING (send_id) WHERE sends.ended_at IS NULL"
    ),
    "verdicts about calls without an answer": (
        "SELECT count(*) FROM verdicts WHERE key NOT IN (SELECT key FROM results WHERE response IS NOT NULL)"
    ),
    "verdicts about concepts that are missing": (
        "SELECT count(*) FROM verdicts WHERE concept NOT IN (SELECT digest FROM concepts)"
    ),
    "sends that cost more than was reserved for them": (
        "SELECT count(*) FROM sends WHERE reserved_nanousd > 0 AND cost_nanousd > reserved_nanousd"
    ),
    "sends after the result of their call": (
        "SELECT count(*) FROM sends JOIN results USING (key) WHERE sends.send_id > results.send_id"
    ),
}
