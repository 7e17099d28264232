-- The two calls around a generation, relay_begin and relay_finish, and what they share with the library of stories.
--
-- Every function of the contract takes one unnamed jsonb and returns jsonb: PostgREST passes the request's body as it is.
-- What is refused is raised as PTxyz, which PostgREST answers as status xyz, with one of the relay's codes as message.

-- Every function names its schemas and looks in no other. `pg_temp` is named last because, not named, it comes first: types
-- that a session made would pass for Postgres' own, also in the one function that runs as its owner.

-- Helpers, in a schema that no API exposes.
create schema relay;
comment on schema relay is 'What the functions of Storytellr Relay share. Not for the API.';
revoke all on schema relay from public;
grant usage on schema relay to authenticated;

create function relay.refuse(status int, code text) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  raise exception using errcode = 'PT' || status, message = code;
end
$$;
comment on function relay.refuse is 'Ends the call with an HTTP status and one of the relay''s codes.';

create function relay.caller() returns uuid
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  uid uuid := (select auth.uid());
begin
  if uid is null then
    perform relay.refuse(401, 'invalid_token');
  end if;
  return uid;
end
$$;
comment on function relay.caller is 'The user whose token this is.';

create function relay.current_status(status text, expires_at timestamptz) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case when status = 'streaming' and expires_at <= now() then 'interrupted' else status end
$$;
comment on function relay.current_status is 'The state of a variant as it is read: one that streams past its time is interrupted.';

create function relay.conversation_of(uid uuid, conversation_id bigint) returns public.relay_conversations
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  conversation public.relay_conversations;
begin
  select * into conversation from public.relay_conversations c
    where c.id = conversation_id and c.user_id = uid for no key update;
  if not found then
    perform relay.refuse(404, 'conversation_not_found');
  end if;
  return conversation;
end
$$;
comment on function relay.conversation_of is 'The user''s conversation, locked against other changes until the transaction ends.';

create function relay.message_of(uid uuid, message_id bigint) returns public.relay_messages
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  message public.relay_messages;
begin
  select * into message from public.relay_messages m where m.id = message_id and m.user_id = uid;
  if not found then
    perform relay.refuse(404, 'message_not_found');
  end if;
  return message;
end
$$;
comment on function relay.message_of is 'The user''s message.';

create function relay.locked_message_of(uid uuid, message_id bigint) returns public.relay_messages
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  message public.relay_messages := relay.message_of(uid, message_id);
begin
  perform from public.relay_conversations c where c.id = message.conversation_id and c.user_id = uid for no key update;
  -- Again, now that nobody can delete it.
  return relay.message_of(uid, message_id);
end
$$;
comment on function relay.locked_message_of is
  'The user''s message, its conversation locked against other changes until the transaction ends.';

-- `reference` has either `message_id` or `message_stream_id`, the stream that wrote the message.
create function relay.rerollable_message(uid uuid, reference jsonb) returns public.relay_messages
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  message public.relay_messages;
  id bigint := (reference ->> 'message_id')::bigint;
begin
  if reference ->> 'message_stream_id' is not null then
    -- Clients call the message temp-stream-<stream id>, and some have named the stream so as well.
    select v.message_id into id from public.relay_generations g join public.relay_variants v on v.id = g.variant_id
      where g.user_id = uid
        and g.stream_id in (reference ->> 'message_stream_id', 'temp-stream-' || (reference ->> 'message_stream_id'))
      order by g.stream_id = reference ->> 'message_stream_id' desc limit 1;
  end if;
  message := relay.locked_message_of(uid, id);
  if message.role <> 'assistant' then
    perform relay.refuse(400, 'not_rerollable');
  end if;
  return message;
end
$$;
comment on function relay.rerollable_message is 'The user''s message that the reference means, if another variant of it may be generated; locked.';

create function relay.bot_json(bot public.relay_bots) returns jsonb
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select to_jsonb(bot) - 'user_id'
$$;
comment on function relay.bot_json is 'A bot as the contract has it.';

create function relay.insert_bot(uid uuid, settings jsonb) returns public.relay_bots
language sql volatile set search_path = pg_catalog, pg_temp as $$
  insert into public.relay_bots (user_id, name, provider, model, base_url, system_prompt, temperature, max_tokens,
    context_size, reasoning, show_reasoning, is_default)
  select uid, s.name, s.provider, s.model, s.base_url, s.system_prompt, s.temperature, s.max_tokens, s.context_size,
    s.reasoning, s.show_reasoning, s.is_default
  from jsonb_populate_record(null::public.relay_bots, settings) s
  returning *
$$;
comment on function relay.insert_bot is 'Makes a bot of those settings.';

-- The named bot or none; else the first that exists of the bound one, a default, any; else one made as `fallback` has it.
create function relay.resolve_bot(uid uuid, named bigint, bound bigint, fallback jsonb) returns public.relay_bots
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  bot public.relay_bots;
begin
  select * into bot from public.relay_bots b
    where b.user_id = uid and (named is null or b.id = named)
    order by (b.id = bound) is true desc, b.is_default desc, b.updated_at desc, b.id desc limit 1
    for key share;
  if not found then
    if named is not null then
      perform relay.refuse(403, 'bot_not_found');
    elsif jsonb_typeof(fallback) is distinct from 'object' then
      perform relay.refuse(403, 'no_bot');
    end if;
    bot := relay.insert_bot(uid, fallback);
  end if;
  return bot;
end
$$;
comment on function relay.resolve_bot is 'The bot that answers, kept from being removed until the transaction ends.';

-- Walked from the end, so that what it costs depends on the bot's context and not on the story's length. Each step is a
-- look-up by itself (lateral, with a limit), so that no plan, however old its statistics, reads all messages of a user.
create function relay.path_above(uid uuid, end_id bigint, room bigint) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  with recursive path as (
    select end_id as parent_id, null::text as role, null::text as content, 0 as depth, 0::bigint as taken
    union all
    select m.parent_id, m.role, m.content, p.depth + 1, p.taken + m.len
    from path p cross join lateral (
      select m.parent_id, m.role, v.content, coalesce(char_length(v.content), 0) as len
      from public.relay_messages m left join public.relay_variants v on v.id = m.active_variant_id
      where m.id = p.parent_id and m.user_id = uid limit 1
    ) m
    where p.taken = 0 or p.taken + m.len <= room
  )
  select coalesce(jsonb_agg(jsonb_build_object('role', role, 'content', content) order by depth desc), '[]')
  from path where content <> ''
$$;
comment on function relay.path_above is
  'The texts of the path that ends with the message, oldest first: its last one, and before it as many as fit the room in characters.';

-- As many as relay_put_key lets there be.
create function relay.keys_for(uid uuid, bot public.relay_bots) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce(jsonb_agg(k.json), '[]') from (
    select jsonb_build_object('id', k.id, 'origin', k.origin, 'sealed', k.sealed) as json
    from public.relay_keys k where k.user_id = uid and k.provider = bot.provider
    order by k.created_at desc, k.id limit 32
  ) k
$$;
comment on function relay.keys_for is 'The user''s keys for the bot''s provider, as they are sealed.';

create function relay.insert_message(uid uuid, conversation_id bigint, parent_id bigint, role text) returns bigint
language sql volatile set search_path = pg_catalog, pg_temp as $$
  insert into public.relay_messages (conversation_id, user_id, parent_id, role, created_at)
  values (conversation_id, uid, parent_id, role, clock_timestamp()) returning id
$$;
comment on function relay.insert_message is 'A new message without a text.';

create function relay.insert_variant(uid uuid, message_id bigint, content text, status text) returns bigint
language sql volatile set search_path = pg_catalog, pg_temp as $$
  insert into public.relay_variants (message_id, user_id, content, status, created_at)
  values (message_id, uid, content, status, clock_timestamp()) returning id
$$;
comment on function relay.insert_variant is 'A new variant; which one is active does not change.';

create function relay.saved_stream(uid uuid, stream_id text) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  select jsonb_build_object(
    'id', m.id, 'conversation_id', m.conversation_id, 'parent_id', m.parent_id, 'role', m.role,
    'variant_id', v.id, 'is_active', m.active_variant_id is not distinct from v.id, 'stream_id', g.stream_id,
    'content', v.content, 'reasoning', v.reasoning, 'status', relay.current_status(v.status, v.expires_at),
    'bot', jsonb_build_object('id', v.bot_id, 'name', coalesce(b.name, '')), 'model', v.model,
    'finish_reason', v.finish_reason, 'usage', v.usage, 'error', v.error,
    'user_message_id', g.user_message_id, 'is_announced', g.is_announced, 'created_at', v.created_at)
  from public.relay_generations g
    join public.relay_variants v on v.id = g.variant_id
    join public.relay_messages m on m.id = v.message_id
    left join public.relay_bots b on b.id = v.bot_id
  where g.user_id = uid and g.stream_id = saved_stream.stream_id
$$;
comment on function relay.saved_stream is 'What is saved of the user''s stream; null if there is none.';

-- Gives the write token of the generation out, in place of the one that was given out before. A relay that brings the
-- hash of its own keeps that token where it survives the relay: it can end the generation though it never came to hear
-- of this answer.
create function relay.give_write_token(generation_id bigint, own_hash text) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  -- Two random UUIDs have 244 bits of the operating system's randomness.
  token text := replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '');
begin
  if own_hash is not null then
    if own_hash !~ '^[0-9a-f]{64}$' then
      perform relay.refuse(400, 'invalid_request');
    end if;
    update public.relay_generations set write_token_hash = decode(own_hash, 'hex') where id = generation_id;
    return null;
  end if;
  update public.relay_generations set write_token_hash = sha256(convert_to(token, 'UTF8')) where id = generation_id;
  return token;
end
$$;
comment on function relay.give_write_token is 'A new write token for the generation, of which the row keeps the hash; null if the caller has one of their own.';

create function public.relay_begin(jsonb) returns jsonb
language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  uid uuid := relay.caller();
  place jsonb := args -> 'place';
  kind text := place ->> 'kind';
  input text := place ->> 'input';
  generation public.relay_generations;
  conversation public.relay_conversations;
  message public.relay_messages;
  parent public.relay_messages;
  variant public.relay_variants;
  bot public.relay_bots;
  is_repeated boolean := false;
begin
  if kind is null or kind not in ('nowhere', 'reply', 'reroll', 'announced')
    or args ->> 'stream_id' is null or args ->> 'fingerprint' is null or args ->> 'expires_at' is null
  then
    perform relay.refuse(400, 'invalid_request');
  end if;
  -- The conversation first, as everywhere, so that no two calls wait for each other.
  perform from public.relay_conversations c
    where c.user_id = uid and c.id in (
      select (place ->> 'conversation_id')::bigint
      union all
      select m.conversation_id from public.relay_messages m
      where m.user_id = uid and m.id = (place ->> 'message_id')::bigint
      union all
      select m.conversation_id from public.relay_generations g
        join public.relay_variants v on v.id = g.variant_id
        join public.relay_messages m on m.id = v.message_id
      where g.user_id = uid and g.stream_id in (args ->> 'stream_id', place ->> 'message_stream_id',
        'temp-stream-' || (place ->> 'message_stream_id')))
    order by c.id for no key update;
  -- Who has the name? It is asked again if somebody else takes it in this moment.
  loop
    select * into generation from public.relay_generations g
      where g.user_id = uid and g.stream_id = args ->> 'stream_id' for update;
    if found and generation.variant_id is null then
      -- What it wrote was deleted, so the name is free.
      update public.relay_generations set stream_id = null where id = generation.id;
    elsif found and generation.fingerprint is null then
      exit;
    elsif found then
      if generation.fingerprint <> args ->> 'fingerprint' then
        perform relay.refuse(409, 'stream_id_reused');
      end if;
      is_repeated := generation.result is null and coalesce(generation.attempt = (args ->> 'attempt')::uuid, false);
      if not is_repeated then
        return jsonb_build_object('existing', relay.saved_stream(uid, generation.stream_id));
      end if;
      exit;
    end if;
    generation := null;
    exit when kind = 'nowhere';
    insert into public.relay_generations (user_id, stream_id, fingerprint, attempt)
      values (uid, args ->> 'stream_id', args ->> 'fingerprint', (args ->> 'attempt')::uuid)
      on conflict (user_id, stream_id) do nothing returning * into generation;
    exit when found;
  end loop;

  if kind = 'nowhere' then
    if generation.id is not null then
      perform relay.refuse(409, 'stream_id_reused');
    end if;
    bot := relay.resolve_bot(uid, (args ->> 'bot_id')::bigint, null, args -> 'fallback_bot');
    return jsonb_build_object('bot', relay.bot_json(bot), 'path', '[]'::jsonb, 'keys', relay.keys_for(uid, bot));
  end if;

  -- Where does the answer belong?
  if is_repeated then
    select v.* into variant from public.relay_variants v where v.id = generation.variant_id;
    message := relay.locked_message_of(uid, variant.message_id);
    conversation := relay.conversation_of(uid, message.conversation_id);
  elsif kind = 'announced' then
    select v.* into variant from public.relay_variants v
      where v.id = generation.variant_id and v.id = (place ->> 'variant_id')::bigint and v.status = 'pending'
        and generation.fingerprint is null;
    if not found then
      perform relay.refuse(404, 'variant_not_found');
    end if;
    message := relay.locked_message_of(uid, variant.message_id);
    if message.conversation_id <> (place ->> 'conversation_id')::bigint then
      perform relay.refuse(404, 'variant_not_found');
    end if;
    conversation := relay.conversation_of(uid, message.conversation_id);
  elsif generation.fingerprint is null then
    perform relay.refuse(409, 'stream_id_reused');
  elsif kind = 'reroll' then
    message := relay.rerollable_message(uid, place);
    conversation := relay.conversation_of(uid, message.conversation_id);
  else
    conversation := relay.conversation_of(uid, (place ->> 'conversation_id')::bigint);
    if place ->> 'parent_id' is not null then
      parent := relay.message_of(uid, (place ->> 'parent_id')::bigint);
      if parent.conversation_id <> conversation.id then
        perform relay.refuse(404, 'message_not_found');
      end if;
    end if;
  end if;

  bot := relay.resolve_bot(uid, (args ->> 'bot_id')::bigint, conversation.bot_id, args -> 'fallback_bot');

  if not is_repeated then
    generation.previous_head_id := conversation.head_id;
    if kind = 'reply' then
      message.parent_id := coalesce(parent.id, conversation.head_id);
      if input is not null then
        generation.user_message_id := relay.insert_message(uid, conversation.id, message.parent_id, 'user');
        update public.relay_messages
          set active_variant_id = relay.insert_variant(uid, id, input, 'complete') where id = generation.user_message_id;
        message.parent_id := generation.user_message_id;
        -- To write somewhere is to choose where the story goes on.
        conversation.head_id := generation.user_message_id;
      end if;
      message.id := relay.insert_message(uid, conversation.id, message.parent_id, 'assistant');
    end if;
    generation.variant_id := coalesce(variant.id, relay.insert_variant(uid, message.id, '', 'pending'));
    update public.relay_variants
      set status = 'streaming', bot_id = bot.id, model = bot.model, expires_at = (args ->> 'expires_at')::timestamptz
      where id = generation.variant_id;
    update public.relay_generations set
      fingerprint = args ->> 'fingerprint', attempt = (args ->> 'attempt')::uuid, variant_id = generation.variant_id,
      user_message_id = generation.user_message_id, previous_head_id = generation.previous_head_id
      where id = generation.id;
    update public.relay_conversations set head_id = conversation.head_id, updated_at = clock_timestamp()
      where id = conversation.id;
  end if;

  return jsonb_build_object(
    'bot', relay.bot_json(bot),
    'rows', jsonb_build_object(
      'conversation_id', conversation.id, 'message_id', message.id, 'variant_id', generation.variant_id,
      'user_message_id', generation.user_message_id, 'write_token', relay.give_write_token(generation.id, args ->> 'write_token_hash')),
    'path', case when (args ->> 'wants_path')::boolean
      then relay.path_above(uid, message.parent_id, bot.context_size * (args ->> 'path_chars_per_token')::bigint)
      else '[]'::jsonb end,
    'keys', relay.keys_for(uid, bot));
end
$$;
comment on function public.relay_begin is
  'Decides which bot answers and makes the rows that the generation will write to. {stream_id, fingerprint, attempt, place, bot_id, wants_path, path_chars_per_token, expires_at, fallback_bot, write_token_hash} → {bot, rows, path, keys} or {existing}.';

-- Runs as its owner: it has to work after the user's token has expired, and the write token says which rows it may touch.
create function public.relay_finish(jsonb) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  outcome text := args ->> 'outcome';
  new_content text := coalesce(args ->> 'content', '');
  new_reasoning text := coalesce(args ->> 'reasoning', '');
  hash bytea := sha256(convert_to(args ->> 'write_token', 'UTF8'));
  generation public.relay_generations;
  conversation public.relay_conversations;
  message public.relay_messages;
  has_others boolean;
  has_children boolean;
  becomes_active boolean;
begin
  if outcome is null or outcome not in ('complete', 'stopped', 'interrupted', 'failed', 'refused') then
    perform relay.refuse(400, 'invalid_request');
  end if;
  -- The conversation first, as everywhere, so that no two calls wait for each other.
  perform from public.relay_generations g
    join public.relay_variants v on v.id = g.variant_id
    join public.relay_messages m on m.id = v.message_id
    join public.relay_conversations c on c.id = m.conversation_id
    where g.write_token_hash = hash for no key update of c;
  select * into generation from public.relay_generations g where g.write_token_hash = hash for update;
  if generation.result is not null then
    return generation.result;
  elsif generation.variant_id is null then
    perform relay.refuse(404, 'stream_not_found');
  end if;
  select m.* into message from public.relay_variants v join public.relay_messages m on m.id = v.message_id
    where v.id = generation.variant_id;
  select * into conversation from public.relay_conversations c where c.id = message.conversation_id;
  has_others := exists (
    select from public.relay_variants v where v.message_id = message.id and v.id <> generation.variant_id);
  has_children := exists (select from public.relay_messages m where m.parent_id = message.id);

  -- Who comes second learns by the last two that somebody else was first.
  generation.result := jsonb_build_object('message_id', message.id, 'variant_id', generation.variant_id,
    'outcome', outcome, 'content_len', octet_length(convert_to(new_content, 'UTF8')));
  if outcome = 'refused' or (outcome = 'failed' and new_content = '' and new_reasoning = '' and (has_others or not has_children))
  then
    -- Nothing is left of it.
    generation.result := generation.result || jsonb_build_object('message_id', null, 'variant_id', null);
    if has_others or has_children then
      delete from public.relay_variants where id = generation.variant_id;
    else
      -- A reader may have moved the head here.
      if conversation.head_id = message.id then
        conversation.head_id := message.parent_id;
        update public.relay_conversations set head_id = conversation.head_id where id = conversation.id;
      end if;
      delete from public.relay_messages where id = message.id;
    end if;
    if outcome = 'refused' and generation.user_message_id is not null
      and not exists (select from public.relay_messages m where m.parent_id = generation.user_message_id)
    then
      if conversation.head_id = generation.user_message_id then
        update public.relay_conversations
          set head_id = (select m.id from public.relay_messages m
            where m.id = generation.previous_head_id and m.conversation_id = conversation.id)
          where id = conversation.id;
      end if;
      delete from public.relay_messages where id = generation.user_message_id;
    end if;
  else
    update public.relay_variants set
      content = new_content, reasoning = new_reasoning, status = outcome,
      finish_reason = args ->> 'finish_reason', usage = nullif(args -> 'usage', 'null'),
      error = nullif(args -> 'failure', 'null'), model = coalesce(nullif(args ->> 'model', ''), model), expires_at = null
      where id = generation.variant_id;
    becomes_active := case outcome
      when 'complete' then true
      when 'stopped' then new_content <> ''
      -- What is only announced, or being written, is nothing that the message could show.
      when 'interrupted' then not exists (
        select from public.relay_variants v where v.message_id = message.id and v.id <> generation.variant_id
          and v.status not in ('pending', 'streaming'))
      else false end;
    if becomes_active then
      update public.relay_messages set active_variant_id = generation.variant_id where id = message.id;
      if conversation.head_id is not distinct from message.parent_id then
        update public.relay_conversations set head_id = message.id where id = conversation.id;
      end if;
    end if;
  end if;
  -- Where the rows are gone the name is free again.
  update public.relay_generations set result = generation.result, ended_at = clock_timestamp(),
    stream_id = case when generation.result ->> 'variant_id' is not null then generation.stream_id end
    where id = generation.id;
  update public.relay_conversations set updated_at = clock_timestamp() where id = conversation.id;
  -- What was answered for rows that are gone is kept for far longer than any retry; a little is cleared at a time.
  delete from public.relay_generations where id in (
    select g.id from public.relay_generations g
    where g.variant_id is null and g.user_id = generation.user_id and g.id <> generation.id
      and coalesce(g.ended_at, '-infinity') < clock_timestamp() - interval '7 days'
    limit 100 for update skip locked);
  return generation.result;
end
$$;
comment on function public.relay_finish is
  'Ends the generation that the write token was given out for, once; repeated, it answers as the first time. Needs no user. {write_token, outcome, content, reasoning, finish_reason, usage, failure, model} → {message_id, variant_id, outcome, content_len}.';

create function public.relay_find_stream(jsonb) returns jsonb
language sql stable security invoker set search_path = pg_catalog, pg_temp as $$
  select relay.saved_stream(relay.caller(), $1 ->> 'stream_id')
$$;
comment on function public.relay_find_stream is 'What is saved of a stream. {stream_id} → the stream or null.';

create function public.relay_announce_reroll(jsonb) returns jsonb
language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  uid uuid := relay.caller();
  message public.relay_messages := relay.rerollable_message(uid, args);
  stream_id text := 'reroll-' || gen_random_uuid();
  variant_id bigint;
begin
  if message.conversation_id <> (args ->> 'conversation_id')::bigint then
    perform relay.refuse(404, 'message_not_found');
  end if;
  variant_id := relay.insert_variant(uid, message.id, '', 'pending');
  insert into public.relay_generations (user_id, stream_id, variant_id, is_announced)
    values (uid, stream_id, variant_id, true);
  update public.relay_conversations set updated_at = clock_timestamp() where id = message.conversation_id;
  return jsonb_build_object('variant_id', variant_id, 'message_id', message.id,
    'conversation_id', message.conversation_id, 'stream_id', stream_id);
end
$$;
comment on function public.relay_announce_reroll is
  'The first half of the two-step reroll. {message_id or message_stream_id, conversation_id} → {variant_id, message_id, conversation_id, stream_id}.';
