-- Storytellr's present tables as far as the relay has to do with them, to test `supabase/adapters/` on.
--
-- Columns as the app has them, policies as they are usual: the owner may do everything with their rows. The tables
-- around them are here for their keys alone. Foreign keys have no actions, as in the app.

begin;

create table public.users (id uuid primary key);
create table public.characters (id serial primary key, user_id uuid references public.users (id));
create table public.personas (id serial primary key, user_id uuid references public.users (id));

create table public.bots (
  id serial primary key,
  model text not null,
  access_key text,
  access_path text,
  context_size integer default 10000,
  max_tokens integer default 1000,
  advanced_prompt text,
  temperature double precision default 0.7,
  name text,
  is_default boolean not null default false,
  user_id uuid references public.users (id),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  reasoning boolean,
  show_reasoning boolean,
  is_openrouter boolean not null default false,
  openrouter_key text
);

create table public.conversations (
  id serial primary key,
  character_id integer not null references public.characters (id),
  persona_id integer not null references public.personas (id),
  title text not null default 'Conversation',
  created_at timestamptz default current_timestamp,
  user_id uuid references public.users (id),
  message_count integer not null default 0,
  last_message_at timestamptz,
  bot_id integer references public.bots (id)
);

create table public.messages (
  id serial primary key,
  conversation_id integer not null references public.conversations (id),
  content text not null,
  t timestamptz default current_timestamp,
  is_user_author boolean not null,
  is_active boolean default true,
  is_streaming boolean default false,
  is_complete boolean default true,
  stream_id text,
  user_id uuid references public.users (id)
);
create index messages_by_conversation on public.messages (conversation_id);

create table public.message_alternatives (
  id serial primary key,
  conversation_id integer not null references public.conversations (id),
  parent_message_id integer not null references public.messages (id),
  content text not null,
  t timestamptz default current_timestamp,
  is_user_author boolean not null,
  is_active boolean default true,
  is_streaming boolean default false,
  is_complete boolean default true,
  stream_id text,
  user_id uuid references public.users (id)
);
create index message_alternatives_by_message on public.message_alternatives (parent_message_id);

alter table public.users enable row level security;
alter table public.characters enable row level security;
alter table public.personas enable row level security;
alter table public.bots enable row level security;
alter table public.conversations enable row level security;
alter table public.messages enable row level security;
alter table public.message_alternatives enable row level security;

-- What Supabase's default privileges gave to every table when these were made.
grant all on all tables in schema public to anon, authenticated;
grant all on all sequences in schema public to anon, authenticated;

create policy select_own on public.users for select using (auth.uid() = id);
do $$
declare
  name text;
begin
  foreach name in array
    array['characters', 'personas', 'bots', 'conversations', 'messages', 'message_alternatives']
  loop
    execute format('create policy select_own on public.%I for select using (auth.uid() = user_id)', name);
    execute format('create policy insert_own on public.%I for insert with check (auth.uid() = user_id)', name);
    execute format('create policy update_own on public.%I for update using (auth.uid() = user_id)', name);
    execute format('create policy delete_own on public.%I for delete using (auth.uid() = user_id)', name);
  end loop;
end
$$;

commit;
