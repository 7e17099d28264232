-- Days are counted from 1970, in UTC, and are those on which a generation began.

-- Tokens that users have spent, and how many of them are the relay's own estimate.
create table spent (
  day integer not null,
  owner text not null,
  tokens integer not null,
  estimated integer not null,
  primary key (day, owner)
) strict, without rowid;

-- Tokens that are set aside for generations that have not ended.
create table reservations (
  owner text not null,
  stream_id text not null,
  -- Tells it from others of that name.
  attempt text not null,
  day integer not null,
  prompt_tokens integer not null,
  answer_tokens integer not null,
  -- Whether other relays are to be told what it came to.
  is_shared integer not null,
  primary key (owner, stream_id, attempt)
) strict, without rowid;

-- What other relays are to be told.
create table debts (
  id integer primary key autoincrement,
  day integer not null,
  owner text not null,
  stream_id text not null,
  attempt text not null,
  used text not null,
  -- Whether they know nothing of it, and then how many tokens it is.
  is_new integer not null,
  tokens integer not null
) strict;

create index debts_by_owner on debts (owner, day);
create index debts_by_day on debts (day);
