-- The story tree, its bots, the generations that write to it, and users' own keys for providers.
--
-- Every row carries its user, and every reference to another row carries the user (or the conversation, or the message)
-- along: a row of one user cannot point at a row of another, whoever writes it. So each policy is one comparison.

create table public.relay_bots (
  id bigint generated always as identity primary key,
  user_id uuid not null default auth.uid(),
  name text not null,
  provider text not null,
  model text not null,
  base_url text,
  system_prompt text not null default '',
  temperature double precision,
  max_tokens bigint check (max_tokens between 0 and 4294967295),
  context_size bigint not null default 10000 check (context_size between 0 and 4294967295),
  reasoning text check (reasoning in ('off', 'minimal', 'low', 'medium', 'high')),
  show_reasoning boolean not null default false,
  is_default boolean not null default false,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default clock_timestamp(),
  unique (id, user_id)
);
comment on table public.relay_bots is 'Personas with their model settings. Keys of providers are not here.';
create index relay_bots_by_user on public.relay_bots (user_id, is_default, updated_at);

create table public.relay_conversations (
  id bigint generated always as identity primary key,
  user_id uuid not null default auth.uid(),
  title text not null default '',
  bot_id bigint,
  head_id bigint,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default clock_timestamp(),
  unique (id, user_id),
  foreign key (bot_id, user_id) references public.relay_bots (id, user_id) on delete set null (bot_id)
);
comment on table public.relay_conversations is 'Stories.';
comment on column public.relay_conversations.head_id is 'The message that the story now ends with.';
create index relay_conversations_by_user on public.relay_conversations (user_id, updated_at desc, id desc);
create index relay_conversations_by_bot on public.relay_conversations (bot_id, user_id);
create index relay_conversations_by_head on public.relay_conversations (head_id, id);

-- Only the parent is stored; children are derived. A subtree is deleted in one statement and not by cascades, which
-- nest as deep as the story is long.
create table public.relay_messages (
  id bigint generated always as identity primary key,
  conversation_id bigint not null,
  user_id uuid not null default auth.uid(),
  parent_id bigint,
  role text not null check (role in ('user', 'assistant', 'system')),
  active_variant_id bigint,
  created_at timestamptz not null default now(),
  unique (id, conversation_id),
  unique (id, user_id),
  foreign key (conversation_id, user_id) references public.relay_conversations (id, user_id) on delete cascade,
  foreign key (parent_id, conversation_id) references public.relay_messages (id, conversation_id)
);
comment on table public.relay_messages is 'Nodes of a story''s tree.';
comment on column public.relay_messages.active_variant_id is 'The variant that the story shows.';
create index relay_messages_by_user on public.relay_messages (user_id, conversation_id, id);
create index relay_messages_by_parent on public.relay_messages (parent_id, user_id);
create index relay_messages_by_active_variant on public.relay_messages (active_variant_id, id);

create table public.relay_variants (
  id bigint generated always as identity primary key,
  message_id bigint not null,
  user_id uuid not null default auth.uid(),
  content text not null default '',
  reasoning text not null default '',
  status text not null
    check (status in ('pending', 'streaming', 'complete', 'stopped', 'interrupted', 'failed')),
  bot_id bigint,
  model text,
  finish_reason text,
  usage jsonb,
  error jsonb,
  created_at timestamptz not null default now(),
  expires_at timestamptz,
  check (status <> 'streaming' or expires_at is not null),
  unique (id, message_id),
  unique (id, user_id),
  foreign key (message_id, user_id) references public.relay_messages (id, user_id) on delete cascade,
  foreign key (bot_id, user_id) references public.relay_bots (id, user_id) on delete set null (bot_id)
);
comment on table public.relay_variants is 'Texts of messages. A message has one or more, one of them active.';
comment on column public.relay_variants.expires_at is
  'When a variant that is streaming must have ended; past it, it is read as interrupted.';
create index relay_variants_by_user on public.relay_variants (user_id, message_id, id);
create index relay_variants_by_message on public.relay_variants (message_id, user_id);
create index relay_variants_by_bot on public.relay_variants (bot_id, user_id);
create index relay_variants_streaming on public.relay_variants (user_id) where status = 'streaming';

alter table public.relay_conversations
  add foreign key (head_id, id) references public.relay_messages (id, conversation_id) on delete set null (head_id);
alter table public.relay_messages
  add foreign key (active_variant_id, id) references public.relay_variants (id, message_id)
    on delete set null (active_variant_id);

create table public.relay_generations (
  id bigint generated always as identity primary key,
  user_id uuid not null default auth.uid(),
  stream_id text check (stream_id ~ '^[A-Za-z0-9._-]{1,128}$'),
  fingerprint text,
  attempt uuid,
  write_token_hash bytea unique,
  variant_id bigint,
  user_message_id bigint,
  previous_head_id bigint,
  is_announced boolean not null default false,
  result jsonb,
  ended_at timestamptz,
  unique (user_id, stream_id),
  foreign key (variant_id, user_id) references public.relay_variants (id, user_id) on delete set null (variant_id),
  foreign key (user_message_id, user_id) references public.relay_messages (id, user_id)
    on delete set null (user_message_id)
);
comment on table public.relay_generations is 'One row a stream: who may write which variant, and what came of it.';
comment on column public.relay_generations.stream_id is
  'Null when its rows are gone: the name is free again, the answer to a repeated finish is still here.';
comment on column public.relay_generations.fingerprint is 'Tells its turn from every other; null while it is only announced.';
comment on column public.relay_generations.attempt is
  'Whose call of relay_begin made it, so that a call whose answer was lost can be repeated.';
comment on column public.relay_generations.previous_head_id is
  'Where the head was before the user''s message, in case the turn is refused.';
comment on column public.relay_generations.result is 'What relay_finish answered.';
create unique index relay_generations_by_variant on public.relay_generations (variant_id, user_id);
create index relay_generations_by_user_message on public.relay_generations (user_message_id, user_id);

create table public.relay_keys (
  id bigint generated always as identity primary key,
  user_id uuid not null default auth.uid(),
  provider text not null check (char_length(provider) <= 200),
  origin text not null default '' check (char_length(origin) <= 2000),
  base_url text check (char_length(base_url) <= 2000),
  last4 text not null check (char_length(last4) <= 4),
  sealed text not null check (char_length(sealed) <= 8000),
  created_at timestamptz not null default clock_timestamp(),
  unique (user_id, provider, origin)
);
comment on table public.relay_keys is 'Users'' own keys for providers, sealed by the relay.';
comment on column public.relay_keys.origin is
  'The origin that the key may be sent to; empty where the provider''s address is the operator''s word.';
comment on column public.relay_keys.last4 is 'The last four characters, to be shown; empty if the key is short.';
comment on column public.relay_keys.sealed is
  'The key, which only the relay''s master key opens, and only for this user, provider and origin.';

-- Everybody's own rows, and nobody else's. The functions run as their caller, under these.
alter table public.relay_bots enable row level security;
alter table public.relay_conversations enable row level security;
alter table public.relay_messages enable row level security;
alter table public.relay_variants enable row level security;
alter table public.relay_generations enable row level security;
alter table public.relay_keys enable row level security;

create policy relay_bots_of_their_user on public.relay_bots
  for all to authenticated using (user_id = (select auth.uid())) with check (user_id = (select auth.uid()));
create policy relay_conversations_of_their_user on public.relay_conversations
  for all to authenticated using (user_id = (select auth.uid())) with check (user_id = (select auth.uid()));
create policy relay_messages_of_their_user on public.relay_messages
  for all to authenticated using (user_id = (select auth.uid())) with check (user_id = (select auth.uid()));
-- Parents are older, so that nobody makes a tree with a circle in it, which the functions would walk for ever.
create policy relay_messages_below_older_ones on public.relay_messages as restrictive
  for insert to authenticated with check (parent_id is null or parent_id < id);
create policy relay_variants_of_their_user on public.relay_variants
  for all to authenticated using (user_id = (select auth.uid())) with check (user_id = (select auth.uid()));
create policy relay_generations_of_their_user on public.relay_generations
  for all to authenticated using (user_id = (select auth.uid())) with check (user_id = (select auth.uid()));
create policy relay_keys_of_their_user on public.relay_keys
  for all to authenticated using (user_id = (select auth.uid())) with check (user_id = (select auth.uid()));

-- Nothing is left to default privileges, which differ from project to project. The functions run as their caller, so the
-- caller may do to the tables what they do, and nothing else: ids, owners, parents and texts are never changed by hand.
revoke all on public.relay_bots, public.relay_conversations, public.relay_messages, public.relay_variants,
  public.relay_generations, public.relay_keys from public, anon, authenticated;
grant select on public.relay_bots, public.relay_conversations, public.relay_messages, public.relay_variants,
  public.relay_generations, public.relay_keys to authenticated;
grant insert (user_id, name, provider, model, base_url, system_prompt, temperature, max_tokens, context_size, reasoning,
    show_reasoning, is_default),
  update (name, provider, model, base_url, system_prompt, temperature, max_tokens, context_size, reasoning,
    show_reasoning, is_default, updated_at),
  delete on public.relay_bots to authenticated;
grant insert (user_id, title, bot_id), update (title, bot_id, head_id, updated_at), delete
  on public.relay_conversations to authenticated;
grant insert (conversation_id, user_id, parent_id, role, created_at), update (active_variant_id), delete
  on public.relay_messages to authenticated;
grant insert (message_id, user_id, content, status, created_at), update (status, bot_id, model, expires_at)
  on public.relay_variants to authenticated;
grant insert (user_id, stream_id, fingerprint, attempt, variant_id, is_announced),
  update (stream_id, fingerprint, attempt, write_token_hash, variant_id, user_message_id, previous_head_id)
  on public.relay_generations to authenticated;
grant insert (user_id, provider, origin, base_url, last4, sealed), update (base_url, last4, sealed, created_at), delete
  on public.relay_keys to authenticated;
do $$
declare
  sequence regclass;
begin
  for sequence in
    select c.oid::regclass from pg_class c
    where c.relnamespace = 'public'::regnamespace and c.relkind = 'S' and c.relname like 'relay\_%'
  loop
    execute format('revoke all on sequence %s from public, anon, authenticated', sequence);
  end loop;
  -- Where there are accounts, what belongs to one goes with it.
  if to_regclass('auth.users') is not null then
    alter table public.relay_bots add foreign key (user_id) references auth.users (id) on delete cascade;
    alter table public.relay_conversations add foreign key (user_id) references auth.users (id) on delete cascade;
    alter table public.relay_generations add foreign key (user_id) references auth.users (id) on delete cascade;
    alter table public.relay_keys add foreign key (user_id) references auth.users (id) on delete cascade;
  end if;
  if exists (select from pg_roles where rolname = 'service_role') then
    grant select, insert, update, delete on public.relay_bots, public.relay_conversations, public.relay_messages,
      public.relay_variants, public.relay_generations, public.relay_keys to service_role;
  end if;
end
$$;
