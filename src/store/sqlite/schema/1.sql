-- The story tree, its bots, and the generations that write to it. Times are milliseconds since 1970, in UTC.
-- Ids are never used twice (autoincrement), because clients keep them. No constraint is deferred: a commit is shared by
-- many, and one that fails would fail them all.

create table bots (
  id integer primary key autoincrement,
  user_id text not null,
  name text not null,
  provider text not null,
  model text not null,
  base_url text,
  system_prompt text not null,
  temperature real,
  max_tokens integer,
  context_size integer not null,
  reasoning text,
  show_reasoning integer not null,
  is_default integer not null,
  created_at integer not null,
  updated_at integer not null
) strict;

create index bots_by_user on bots (user_id, is_default, updated_at);

create table conversations (
  id integer primary key autoincrement,
  user_id text not null,
  title text not null,
  bot_id integer references bots on delete set null,
  head_id integer references messages on delete set null,
  created_at integer not null,
  updated_at integer not null
) strict;

create index conversations_by_user on conversations (user_id, updated_at desc, id desc);
create index conversations_by_bot on conversations (bot_id);
create index conversations_by_head on conversations (head_id);

-- Only the parent is stored; children are derived. A subtree is deleted in one statement and not by cascades, which
-- SQLite nests no deeper than a thousand.
create table messages (
  id integer primary key autoincrement,
  conversation_id integer not null references conversations on delete cascade,
  parent_id integer references messages,
  role text not null check (role in ('user', 'assistant', 'system')),
  active_variant_id integer references variants on delete set null,
  created_at integer not null
) strict;

create index messages_by_conversation on messages (conversation_id);
create index messages_by_parent on messages (parent_id);
create index messages_by_active_variant on messages (active_variant_id);

create table variants (
  id integer primary key autoincrement,
  message_id integer not null references messages on delete cascade,
  content text not null,
  reasoning text not null,
  status text not null check (status in ('pending', 'streaming', 'complete', 'stopped', 'interrupted', 'failed')),
  bot_id integer references bots on delete set null,
  model text,
  finish_reason text,
  usage text,
  error text,
  created_at integer not null,
  -- When a variant that is streaming must have ended; past it, it is read as interrupted.
  expires_at integer
) strict;

create index variants_by_message on variants (message_id);
create index variants_by_bot on variants (bot_id);
create index variants_streaming on variants (expires_at) where status = 'streaming';

-- One row a stream: who may write which variant, and what came of it.
create table generations (
  id integer primary key autoincrement,
  user_id text not null,
  -- Null when its rows are gone: the name is free again, the answer to a repeated finish is still here.
  stream_id text,
  -- Null while it is only announced.
  fingerprint text,
  write_token_hash blob unique,
  variant_id integer references variants on delete set null,
  user_message_id integer references messages on delete set null,
  -- Where the head was before the user's message, in case the turn is refused.
  previous_head_id integer,
  is_announced integer not null,
  -- What finish answered, as JSON.
  result text,
  ended_at integer
) strict;

create unique index generations_by_stream on generations (user_id, stream_id) where stream_id is not null;
create index generations_by_variant on generations (variant_id);
create index generations_by_user_message on generations (user_message_id);
