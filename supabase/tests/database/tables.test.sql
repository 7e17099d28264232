-- What can be done to the tables by hand, past the functions: PostgREST serves them too. Nobody reads or changes a row
-- of another user, adds one in another's name, or makes a row of their own point at one of another's.

begin;
\ir helpers.psql
select pg_temp.two_users();

-- The user's oldest row of the table.
create function pg_temp.row_of(who text, relation regclass) returns jsonb
language plpgsql stable as $$
declare
  found jsonb;
begin
  execute format('select to_jsonb(t) from %s t where user_id = $1 order by id limit 1', relation)
    into found using pg_temp.user_of(who);
  if found is null then
    raise exception 'helpers.psql makes no row of %', relation;
  end if;
  return found;
end
$$;

-- Inserts the row and counts it: those of its columns that authenticated may write, and `named`. What is unique in it, or
-- refers to another row, is left out where it can be (it may be null, or has a default), so that the row it was copied
-- from is not in the way.
create function pg_temp.insertion(relation regclass, row_values jsonb, named text) returns text
language plpgsql stable as $$
declare
  columns text;
  left_out text[];
begin
  select coalesce(array_agg(a.attname), '{}') into left_out
    from pg_attribute a
    where a.attrelid = relation and a.attnum > 0 and (not a.attnotnull or a.atthasdef) and a.attname <> named
      and (exists (select from pg_index i
          where i.indrelid = relation and i.indisunique and a.attnum = any (i.indkey::int2[]))
        or exists (select from pg_constraint k
          where k.conrelid = relation and k.contype = 'f' and k.conkey[1] = a.attnum));
  select string_agg(quote_ident(attname), ', ' order by attnum) into columns
    from pg_attribute
    where attrelid = relation and attnum > 0 and not attisdropped and attname <> all (left_out) and (attname = named
      or has_column_privilege('authenticated', relation, attnum, 'insert') and attidentity = '');
  return format('with made as (
      insert into %1$s (%2$s) select %2$s from jsonb_populate_record(null::%1$s, %3$L) returning 1)
    select count(*) from made', relation, columns, row_values);
end
$$;

-- A column that authenticated may change, if there is one.
create function pg_temp.changeable(relation regclass) returns text
language sql stable as $$
  select coalesce(min(attname), 'user_id') from pg_attribute
  where attrelid = relation and attnum > 0 and has_column_privilege('authenticated', relation, attnum, 'update')
    and attidentity = ''
$$;

-- What is tried with the owner's rows of each table, and what comes of it for those who are authenticated.
create temp table tried as
  select t as relation, does, statement, refused
  from pg_temp.relay_tables() t
    cross join lateral (select pg_temp.user_of('owner') as owner, '42501 permission denied for table ' || t as denied) u
    cross join lateral (values
      ('reads', format('select count(*) from %s where user_id = %L', t, owner), 'answer: 0'),
      ('changes', format('with done as (update %1$s set %2$I = %2$I where user_id = %3$L returning 1)
          select count(*) from done', t, pg_temp.changeable(t), owner),
        case when has_any_column_privilege('authenticated', t, 'update') then 'answer: 0' else denied end),
      ('deletes from', format('with done as (delete from %s where user_id = %L returning 1)
          select count(*) from done', t, owner),
        case when has_table_privilege('authenticated', t, 'delete') then 'answer: 0' else denied end),
      ('adds to', pg_temp.insertion(t, pg_temp.row_of('owner', t), 'user_id'),
        format('42501 new row violates row-level security policy for table "%s"', t))) v (does, statement, refused);

-- For each foreign key between the tables, a row of the stranger's that refers to the owner's row, and one that refers to
-- none.
create temp table pointed as
  select k.conname, k.conrelid::regclass as relation, a.attname as named, target,
    pg_temp.insertion(k.conrelid, own || jsonb_build_object(a.attname, id), a.attname) as adding,
    format('update %s set %I = %s where id = %s returning id', k.conrelid::regclass, a.attname, id, own -> 'id') as moving
  from pg_constraint k join pg_attribute a on a.attrelid = k.conrelid and a.attnum = k.conkey[1]
    cross join lateral (select pg_temp.row_of('stranger', k.conrelid) as own) o
    cross join lateral (values
      ('owner', (pg_temp.row_of('owner', k.confrelid) ->> 'id')::bigint),
      ('nothing', nextval(pg_get_serial_sequence(k.confrelid::regclass::text, 'id')))) v (target, id)
  where k.contype = 'f' and k.conrelid in (select pg_temp.relay_tables())
    and k.confrelid in (select pg_temp.relay_tables());

select plan(1
  + (select 3 * count(*) + count(*) filter (where does in ('reads', 'changes') and refused like 'answer%') from tried)::int
  + (select 2 * count(*) from pg_temp.relay_tables())::int
  + (select 5 * count(*) from pointed where target = 'owner')::int);

select cmp_ok((select count(*) from pointed where target = 'owner'), '>=', 9::bigint, 'the foreign keys are found');

-- The owner. There is something to be found, and what is added would be good, or what follows would say nothing.
select matches(pg_temp.attempt('owner', statement), '^answer: [1-9]', format('owner: %s %s', does, relation))
  from tried where does in ('reads', 'changes') and refused like 'answer%';
select is(pg_temp.attempt('stranger', pg_temp.insertion(t, pg_temp.row_of('stranger', t), 'user_id')), 'answer: 1',
  'stranger: adds a row of their own to ' || t) from pg_temp.relay_tables() t;

-- Everybody else.
select is(pg_temp.attempt(who, statement), refused, format('%s: %s %s', who, does, relation))
  from tried, unnest(array['stranger', 'nobody']) who;
select is(pg_temp.attempt('anon', statement), '42501 permission denied for table ' || relation,
  format('anon: %s %s', does, relation)) from tried;
select matches(
    pg_temp.attempt('stranger', format('update %s set user_id = %L where id = %s returning id', t, pg_temp.user_of('owner'),
      pg_temp.row_of('stranger', t) -> 'id')),
    '^42501 [^,]*$', 'stranger: gives the owner a row of ' || t)
  from pg_temp.relay_tables() t;

-- References. A row of another user cannot be told from one that is not there.
select matches(pg_temp.attempt('stranger', adding), '^(23503|42501) [^,]*$',
  format('stranger: adds no row to %s whose %s is the owner''s', relation, named)) from pointed where target = 'owner';
select is(pg_temp.attempt('stranger', p.adding), pg_temp.attempt('stranger', n.adding),
    format('stranger: not theirs and not there are the same for a new %s of %s', p.named, p.relation))
  from pointed p join pointed n using (conname) where p.target = 'owner' and n.target = 'nothing';
select matches(pg_temp.attempt('stranger', moving), '^(23503|42501) [^,]*$',
  format('stranger: moves no %s of %s to the owner''s row', named, relation)) from pointed where target = 'owner';
select is(pg_temp.attempt('stranger', p.moving), pg_temp.attempt('stranger', n.moving),
    format('stranger: not theirs and not there are the same for a moved %s of %s', p.named, p.relation))
  from pointed p join pointed n using (conname) where p.target = 'owner' and n.target = 'nothing';

-- Nor does anybody else mix the rows of two users up, by whatever mistake.
select matches(pg_temp.attempt('operator', moving), '^23503 [^,]*$',
  format('operator: moves no %s of %s to another user''s row', named, relation)) from pointed where target = 'owner';

select * from finish(true);
rollback;
