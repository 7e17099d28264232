-- What must survive the process: generations that are being written, and finished ones that the database has not taken.
-- Write tokens are here as they are, so the file is its owner's alone. Times are milliseconds since 1970, in UTC.

-- Generations that are being written, or were when the process died.
create table records (
  id integer primary key autoincrement,
  owner text not null,
  stream_id text not null,
  write_token text not null
) strict;

-- Their text, in the order in which it came.
create table pieces (
  record_id integer not null references records on delete cascade,
  begin integer not null,
  kind text not null check (kind in ('reasoning', 'token')),
  text text not null,
  primary key (record_id, begin)
) strict, without rowid;

-- Finished generations that are to be saved.
create table outbox (
  id integer primary key autoincrement,
  owner text not null,
  stream_id text not null,
  write_token text not null unique,
  outcome text not null,
  content text not null,
  reasoning text not null,
  finish_reason text,
  usage text,
  failure text,
  model text not null,
  attempts integer not null default 0,
  due_at integer not null,
  -- Why the last attempt failed.
  reason text,
  -- When it was given up, for the operator to look at; absent while it is tried.
  set_aside_at integer,
  created_at integer not null
) strict;

create index outbox_by_due on outbox (due_at) where set_aside_at is null;
create index outbox_by_stream on outbox (owner, stream_id);
