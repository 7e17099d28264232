-- The library of stories and bots, users' own keys, and who may call what.

create function relay.wrong_cursor() returns void
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select relay.refuse(400, 'invalid_request')
$$;
comment on function relay.wrong_cursor is 'For a cursor that no page gave out.';

create function relay.conversation_json(conversation public.relay_conversations) returns jsonb
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select to_jsonb(conversation) - 'user_id'
$$;
comment on function relay.conversation_json is 'A conversation as the contract has it, without its messages.';

create function relay.variant_json(variant public.relay_variants, stream_id text) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  select jsonb_build_object(
    'id', variant.id, 'content', variant.content, 'reasoning', variant.reasoning,
    'status', relay.current_status(variant.status, variant.expires_at), 'stream_id', stream_id,
    'bot_id', variant.bot_id, 'model', variant.model, 'finish_reason', variant.finish_reason,
    'usage', variant.usage, 'error', variant.error, 'created_at', variant.created_at)
$$;
comment on function relay.variant_json is 'A variant as the contract has it.';

create function relay.message_json(message public.relay_messages) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  select jsonb_build_object(
    'id', message.id, 'parent_id', message.parent_id, 'role', message.role,
    'active_variant_id', message.active_variant_id, 'created_at', message.created_at,
    'variants', coalesce(
      (select jsonb_agg(relay.variant_json(v, g.stream_id) order by v.id)
       from public.relay_variants v left join public.relay_generations g on g.variant_id = v.id
       where v.message_id = message.id and v.user_id = message.user_id), '[]'))
$$;
comment on function relay.message_json is 'A message with its variants as the contract has it.';

create function relay.refuse_larger(len bigint, args jsonb) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  -- Without the argument there is no limit.
  if len > (args ->> 'len_max')::bigint then
    perform relay.refuse(409, 'story_too_large');
  end if;
end
$$;
comment on function relay.refuse_larger is 'Refuses texts of more than args.len_max bytes, of which each variant has 512 beside its own.';

create function relay.message_if_no_larger(message public.relay_messages, args jsonb) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  perform relay.refuse_larger((
    select sum(512 + octet_length(v.content) + octet_length(v.reasoning)) from public.relay_variants v
    where v.message_id = message.id and v.user_id = message.user_id), args);
  return relay.message_json(message);
end
$$;
comment on function relay.message_if_no_larger is 'As relay.message_json, of texts of no more than args.len_max bytes.';

create function relay.bot_of(uid uuid, bot_id bigint) returns public.relay_bots
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  bot public.relay_bots;
begin
  select * into bot from public.relay_bots b where b.id = bot_id and b.user_id = uid;
  if not found then
    perform relay.refuse(403, 'bot_not_found');
  end if;
  return bot;
end
$$;
comment on function relay.bot_of is 'The user''s bot.';

create function relay.keep_bot(uid uuid, bot_id bigint) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  perform from public.relay_bots b where b.id = bot_id and b.user_id = uid for key share;
  if not found then
    perform relay.refuse(403, 'bot_not_found');
  end if;
end
$$;
comment on function relay.keep_bot is 'Keeps the user''s bot from being removed until the transaction ends.';

create function relay.page_len(args jsonb) returns bigint
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  page_len bigint := (args ->> 'limit')::bigint;
begin
  if page_len is null or page_len not between 1 and 1000 then
    perform relay.refuse(400, 'invalid_request');
  end if;
  return page_len;
end
$$;
comment on function relay.page_len is 'How many entries a page of a list may have.';

-- The message and all below it, each message's children looked up by themselves, as in relay.path_above.
create function relay.subtree(uid uuid, root_id bigint) returns setof bigint
language sql stable set search_path = pg_catalog, pg_temp as $$
  with recursive subtree (id) as (
    select root_id
    union all
    select m.id from subtree s cross join lateral (
      select m.id from public.relay_messages m where m.parent_id = s.id and m.user_id = uid offset 0
    ) m
  )
  select id from subtree
$$;
comment on function relay.subtree is 'The ids of the message and of all below it.';

create function public.relay_list_conversations(jsonb) returns jsonb
language plpgsql stable security invoker set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  uid uuid := relay.caller();
  page_len bigint := relay.page_len(args);
  after text := args ->> 'after';
  after_time timestamptz := 'infinity';
  after_id bigint := 9223372036854775807;
  page jsonb;
begin
  if after is not null then
    if after !~ '^[0-9]{1,16}-[0-9]{1,16}$' then
      perform relay.wrong_cursor();
    end if;
    after_time := 'epoch'::timestamptz + split_part(after, '-', 1)::bigint * interval '1 microsecond';
    after_id := split_part(after, '-', 2)::bigint;
  end if;
  with found as (
    select c, row_number() over (order by c.updated_at desc, c.id desc) as at
    from public.relay_conversations c
    where c.user_id = uid and (c.updated_at, c.id) < (after_time, after_id)
    order by c.updated_at desc, c.id desc limit page_len + 1
  )
  select jsonb_build_object(
    'data', coalesce(jsonb_agg(relay.conversation_json(c) order by at) filter (where at <= page_len), '[]'),
    'next', max((extract(epoch from (c).updated_at) * 1000000)::bigint || '-' || (c).id)
      filter (where at = page_len and (select count(*) from found) > page_len))
    into page from found;
  return page;
end
$$;
comment on function public.relay_list_conversations is
  'The user''s conversations, the most recently changed first. {after, limit} → {data, next}.';

create function public.relay_create_conversation(jsonb) returns jsonb
language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  uid uuid := relay.caller();
  bot_id bigint := (args ->> 'bot_id')::bigint;
  conversation public.relay_conversations;
begin
  if bot_id is not null then
    perform relay.keep_bot(uid, bot_id);
  end if;
  insert into public.relay_conversations (user_id, title, bot_id) values (uid, args ->> 'title', bot_id)
    returning * into conversation;
  return relay.conversation_json(conversation);
end
$$;
comment on function public.relay_create_conversation is 'Makes a conversation without messages. {title, bot_id} → the conversation.';

create function public.relay_tree(jsonb) returns jsonb
language plpgsql stable security invoker set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  uid uuid := relay.caller();
  conversation public.relay_conversations;
  path jsonb;
  messages jsonb;
begin
  select * into conversation from public.relay_conversations c
    where c.id = (args ->> 'id')::bigint and c.user_id = uid;
  if not found then
    perform relay.refuse(404, 'conversation_not_found');
  end if;
  with recursive path_up (id, depth) as (
    select conversation.head_id, 0
    union all
    select m.parent_id, p.depth + 1 from path_up p cross join lateral (
      select m.parent_id from public.relay_messages m where m.id = p.id and m.user_id = uid limit 1
    ) m
  )
  select coalesce(jsonb_agg(p.id order by p.depth desc) filter (where p.id is not null), '[]') into path from path_up p;
  perform relay.refuse_larger((
    select sum(v.len)::bigint from public.relay_messages m cross join lateral (
      select sum(512 + octet_length(v.content) + octet_length(v.reasoning)) as len from public.relay_variants v
      where v.message_id = m.id and v.user_id = m.user_id
    ) v
    where m.user_id = uid and m.conversation_id = conversation.id), args);
  -- As relay.message_json, in one statement: policies ask once who is calling, and not once a message.
  select coalesce(jsonb_agg(jsonb_build_object(
      'id', m.id, 'parent_id', m.parent_id, 'role', m.role, 'active_variant_id', m.active_variant_id,
      'created_at', m.created_at, 'variants', coalesce(v.list, '[]')) order by m.id), '[]')
    into messages
    from public.relay_messages m cross join lateral (
      select jsonb_agg(relay.variant_json(v, g.stream_id) order by v.id) as list
      from public.relay_variants v left join lateral (
        select g.stream_id from public.relay_generations g where g.variant_id = v.id and g.user_id = v.user_id limit 1
      ) g on true
      where v.message_id = m.id and v.user_id = m.user_id
    ) v
    where m.user_id = uid and m.conversation_id = conversation.id;
  return relay.conversation_json(conversation) || jsonb_build_object('path', path, 'messages', messages);
end
$$;
comment on function public.relay_tree is 'The whole tree of a conversation. {id, len_max} → the conversation, its path and its messages.';

create function public.relay_patch_conversation(jsonb) returns jsonb
language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  uid uuid := relay.caller();
  patch jsonb := args -> 'patch';
  conversation public.relay_conversations := relay.conversation_of(uid, (args ->> 'id')::bigint);
begin
  if patch ->> 'bot_id' is not null then
    perform relay.keep_bot(uid, (patch ->> 'bot_id')::bigint);
  end if;
  if patch ? 'head_id'
    and (relay.message_of(uid, (patch ->> 'head_id')::bigint)).conversation_id <> conversation.id
  then
    perform relay.refuse(404, 'message_not_found');
  end if;
  update public.relay_conversations c set
    title = coalesce(patch ->> 'title', c.title),
    bot_id = case when patch ? 'bot_id' then (patch ->> 'bot_id')::bigint else c.bot_id end,
    head_id = coalesce((patch ->> 'head_id')::bigint, c.head_id),
    updated_at = clock_timestamp()
    where c.id = conversation.id returning * into conversation;
  return relay.conversation_json(conversation);
end
$$;
comment on function public.relay_patch_conversation is
  'Changes what the patch names and nothing else. {id, patch: {title, bot_id, head_id}} → the conversation.';

create function public.relay_delete_conversation(jsonb) returns jsonb
language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  uid uuid := relay.caller();
  conversation public.relay_conversations := relay.conversation_of(uid, (args ->> 'id')::bigint);
begin
  if exists (
    select from public.relay_variants v join public.relay_messages m on m.id = v.message_id
    where v.user_id = uid and m.conversation_id = conversation.id and v.status = 'streaming' and v.expires_at > now())
  then
    perform relay.refuse(409, 'generation_running');
  end if;
  delete from public.relay_conversations c where c.id = conversation.id;
  return 'null';
end
$$;
comment on function public.relay_delete_conversation is 'Removes a conversation with all its messages. {id} → null.';

create function public.relay_select_variant(jsonb) returns jsonb
language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  uid uuid := relay.caller();
  message public.relay_messages := relay.locked_message_of(uid, (args ->> 'message_id')::bigint);
  variant_id bigint := (args ->> 'variant_id')::bigint;
  status text;
begin
  select relay.current_status(v.status, v.expires_at) into status from public.relay_variants v
    where v.id = variant_id and v.message_id = message.id;
  if not found or status = 'pending' then
    perform relay.refuse(404, 'variant_not_found');
  elsif status = 'streaming' then
    perform relay.refuse(409, 'generation_running');
  end if;
  update public.relay_messages m set active_variant_id = variant_id where m.id = message.id returning * into message;
  update public.relay_conversations set updated_at = clock_timestamp() where id = message.conversation_id;
  return relay.message_if_no_larger(message, args);
end
$$;
comment on function public.relay_select_variant is
  'Makes a variant the one that the story shows. {message_id, variant_id, len_max} → the message.';

create function public.relay_write_variant(jsonb) returns jsonb
language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  uid uuid := relay.caller();
  message public.relay_messages := relay.locked_message_of(uid, (args ->> 'message_id')::bigint);
begin
  update public.relay_messages m
    set active_variant_id = relay.insert_variant(uid, m.id, args ->> 'content', 'complete')
    where m.id = message.id returning * into message;
  update public.relay_conversations set updated_at = clock_timestamp() where id = message.conversation_id;
  return relay.message_if_no_larger(message, args);
end
$$;
comment on function public.relay_write_variant is
  'Adds a variant written by hand, complete and active. {message_id, content, len_max} → the message.';

create function public.relay_delete_message(jsonb) returns jsonb
language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  uid uuid := relay.caller();
  message public.relay_messages := relay.locked_message_of(uid, (args ->> 'message_id')::bigint);
  conversation public.relay_conversations := relay.conversation_of(uid, message.conversation_id);
  doomed bigint[] := array(select relay.subtree(uid, message.id));
begin
  if exists (
    select from public.relay_variants v
    where v.user_id = uid and v.message_id = any (doomed) and v.status = 'streaming' and v.expires_at > now())
  then
    perform relay.refuse(409, 'generation_running');
  end if;
  update public.relay_conversations c set
    head_id = case when c.head_id = any (doomed) then message.parent_id else c.head_id end,
    updated_at = clock_timestamp()
    where c.id = conversation.id;
  delete from public.relay_messages m where m.id = any (doomed);
  return 'null';
end
$$;
comment on function public.relay_delete_message is
  'Removes a message and all below it. A head among them moves to the removed message''s parent. {message_id} → null.';

create function public.relay_list_bots(jsonb) returns jsonb
language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  uid uuid := relay.caller();
  page_len bigint := relay.page_len(args);
  after text := args ->> 'after';
  page jsonb;
begin
  if after !~ '^[0-9]{1,16}$' then
    perform relay.wrong_cursor();
  end if;
  if jsonb_typeof(args -> 'fallback_bot') = 'object'
    and not exists (select from public.relay_bots b where b.user_id = uid)
  then
    perform relay.insert_bot(uid, args -> 'fallback_bot');
  end if;
  with found as (
    select b, row_number() over (order by b.id) as at from public.relay_bots b
    where b.user_id = uid and b.id > coalesce(after::bigint, 0) order by b.id limit page_len + 1
  )
  select jsonb_build_object(
    'data', coalesce(jsonb_agg(relay.bot_json(b) order by at) filter (where at <= page_len), '[]'),
    'next', max((b).id::text) filter (where at = page_len and (select count(*) from found) > page_len))
    into page from found;
  return page;
end
$$;
comment on function public.relay_list_bots is 'The user''s bots, oldest first. {after, limit, fallback_bot} → {data, next}.';

create function public.relay_read_bot(jsonb) returns jsonb
language sql stable security invoker set search_path = pg_catalog, pg_temp as $$
  select relay.bot_json(relay.bot_of(relay.caller(), ($1 ->> 'id')::bigint))
$$;
comment on function public.relay_read_bot is 'One of the user''s bots. {id} → the bot.';

create function public.relay_create_bot(jsonb) returns jsonb
language sql volatile security invoker set search_path = pg_catalog, pg_temp as $$
  select relay.bot_json(relay.insert_bot(relay.caller(), $1 -> 'settings'))
$$;
comment on function public.relay_create_bot is 'Makes a bot. {settings} → the bot.';

create function public.relay_update_bot(jsonb) returns jsonb
language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  bot public.relay_bots := relay.bot_of(relay.caller(), (args ->> 'id')::bigint);
begin
  bot := jsonb_populate_record(bot, (args -> 'settings') - array['id', 'user_id', 'created_at']);
  update public.relay_bots b set
    name = bot.name, provider = bot.provider, model = bot.model, base_url = bot.base_url,
    system_prompt = bot.system_prompt, temperature = bot.temperature, max_tokens = bot.max_tokens,
    context_size = bot.context_size, reasoning = bot.reasoning, show_reasoning = bot.show_reasoning,
    is_default = bot.is_default, updated_at = clock_timestamp()
    where b.id = bot.id returning * into bot;
  if not found then
    perform relay.refuse(403, 'bot_not_found');
  end if;
  return relay.bot_json(bot);
end
$$;
comment on function public.relay_update_bot is 'Replaces what a user said of a bot. {id, settings} → the bot.';

create function public.relay_delete_bot(jsonb) returns jsonb
language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
declare
  bot public.relay_bots := relay.bot_of(relay.caller(), ($1 ->> 'id')::bigint);
begin
  -- The conversations first, as everywhere, so that no two calls wait for each other.
  perform from public.relay_conversations c
    where c.bot_id = bot.id and c.user_id = bot.user_id order by c.id for no key update;
  delete from public.relay_bots b where b.id = bot.id;
  return 'null';
end
$$;
comment on function public.relay_delete_bot is 'Removes a bot. Conversations bound to it fall back to the user''s other bots. {id} → null.';

create function relay.key_json(key public.relay_keys) returns jsonb
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select to_jsonb(key) - array['user_id', 'origin', 'sealed']
$$;
comment on function relay.key_json is 'What is shown of a key.';

create function public.relay_list_keys(jsonb) returns jsonb
language sql stable security invoker set search_path = pg_catalog, pg_temp as $$
  select jsonb_build_object('data', coalesce(jsonb_agg(relay.key_json(k) order by k.created_at, k.id), '[]'))
  from public.relay_keys k where k.user_id = relay.caller()
$$;
comment on function public.relay_list_keys is
  'What is shown of the user''s keys for providers, oldest first. {} → {data: [{id, provider, base_url, last4, created_at}]}.';

create function public.relay_put_key(jsonb) returns jsonb
language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  uid uuid := relay.caller();
  key public.relay_keys;
begin
  if (select count(*) from public.relay_keys k
      where k.user_id = uid and (k.provider <> args ->> 'provider' or k.origin <> args ->> 'origin')) >= 32
  then
    perform relay.refuse(409, 'too_many_keys');
  end if;
  insert into public.relay_keys (user_id, provider, origin, base_url, last4, sealed)
    values (uid, args ->> 'provider', args ->> 'origin', args ->> 'base_url', args ->> 'last4', args ->> 'sealed')
    on conflict (user_id, provider, origin) do update set
      base_url = excluded.base_url, last4 = excluded.last4, sealed = excluded.sealed, created_at = excluded.created_at
    returning * into key;
  return relay.key_json(key);
end
$$;
comment on function public.relay_put_key is
  'Keeps a key in place of the one of the same provider and origin; 32 keys at most. {provider, origin, base_url, last4, sealed} → what is shown of it.';

create function public.relay_reseal_key(jsonb) returns jsonb
language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
begin
  update public.relay_keys k set sealed = $1 ->> 'new'
    where k.id = ($1 ->> 'id')::bigint and k.user_id = relay.caller() and k.sealed = $1 ->> 'old';
  if not found then
    perform relay.refuse(404, 'key_not_found');
  end if;
  return 'null';
end
$$;
comment on function public.relay_reseal_key is
  'Replaces the sealed form of a key if it is still the old one. {id, old, new} → null.';

create function public.relay_delete_key(jsonb) returns jsonb
language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
begin
  delete from public.relay_keys k where k.id = ($1 ->> 'id')::bigint and k.user_id = relay.caller();
  if not found then
    perform relay.refuse(404, 'key_not_found');
  end if;
  return 'null';
end
$$;
comment on function public.relay_delete_key is 'Removes a key. {id} → null.';

create function public.relay_version(jsonb) returns jsonb
language sql stable security invoker set search_path = pg_catalog, pg_temp as $$
  select jsonb_build_object('version', 1)
$$;
comment on function public.relay_version is 'Which version of the contract these functions are. {} → {version}.';

-- Functions are executable by everybody unless that is taken back, whatever the default privileges of the schema are.
do $$
declare
  name regprocedure;
begin
  for name in
    select p.oid::regprocedure from pg_proc p
    where p.pronamespace = 'relay'::regnamespace
      or (p.pronamespace = 'public'::regnamespace and p.proname like 'relay\_%')
  loop
    execute format('revoke execute on function %s from public, anon, authenticated', name);
    execute format('grant execute on function %s to authenticated', name);
  end loop;
  -- Called by the relay without a user: one by write token, the other tells nothing but a number.
  grant execute on function public.relay_finish(jsonb), public.relay_version(jsonb) to anon;
end
$$;

-- PostgREST, where there is one, learns of the functions at once.
notify pgrst, 'reload schema';
