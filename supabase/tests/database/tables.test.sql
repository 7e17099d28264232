-- What can be done to the tables by hand, past the functions: PostgREST serves them too. Nobody reads or changes a row of
-- another user, adds one in another's name, or makes a row of their own point at one of another's.

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
    into strict found using pg_temp.user_of(who);
  return found;
end
$$;

-- Inserts the row and counts it: those of its columns that authenticated may write, and `named`. What is unique in it, or
-- refers to another row, is left out where it can be, so that the row it was copied from is not in the way.
create function pg_temp.insertion(relation regclass, row_values jsonb, named text) returns text
language plpgsql stable as $$
declare
  columns text;
  left_out text[];
begin
  select array_agg(a.attname) into left_out
    from pg_attribute a
    where a.attrelid = relation and a.attnum > 0 and not a.attnotnull and a.attname <> named
      and (exists (select from pg_index i
          where i.indrelid = relation and i.indisunique and a.attnum = any (i.indkey::int2[]))
        or exists (select from pg_constraint k where k.conrelid = relation and k.contype = 'f' and k.conkey[1] = a.attnum));
  select string_agg(quote_ident(attname), ', ' order by attnum) into columns
    from pg_attribute
    where attrelid = relation and attnum > 0 and not attisdropped
      and (attname = named or has_column_privilege('authenticated', relation, attnum, 'insert') and attidentity = '');
  return format('with made as (insert into %1$s (%2$s) select %2$s from jsonb_populate_record(null::%1$s, %3$L) returning 1)
    select count(*) from made', relation, columns, row_values - coalesce(left_out, '{}'));
end
$$;

-- Changes a column that may be changed to what it is, in all rows of the owner, and counts them.
create function pg_temp.update_of_owner(relation regclass) returns text
language sql stable as $$
  select format('with changed as (update %1$s set %2$I = %2$I where user_id = %3$L returning 1) select count(*) from changed',
    relation, min(attname) filter (where has_column_privilege('authenticated', relation, attnum, 'update')),
    pg_temp.user_of('owner'))
  from pg_attribute where attrelid = relation and attnum > 0 and not attisdropped and attidentity = ''
$$;

create temp table tried as
  select t as relation, format('select count(*) from %s where user_id = %L', t, pg_temp.user_of('owner')) as reading,
    pg_temp.update_of_owner(t) as changing,
    format('with gone as (delete from %s where user_id = %L returning 1) select count(*) from gone', t, pg_temp.user_of('owner'))
      as deleting,
    pg_temp.insertion(t, pg_temp.row_of('owner', t), 'user_id') as adding,
    format('update %s set user_id = %L where id = %s returning id', t, pg_temp.user_of('owner'), pg_temp.row_of('stranger', t) -> 'id')
      as giving
  from pg_temp.relay_tables() t;

-- For each foreign key between the tables, the stranger's row with a reference to the owner's row, and to none.
create temp table pointed as
  select k.conname, k.conrelid::regclass as relation, a.attname as named, target, id,
    pg_temp.insertion(k.conrelid, pg_temp.row_of('stranger', k.conrelid) || jsonb_build_object(a.attname, id), a.attname) as adding,
    format('update %s set %I = %s where id = %s returning id', k.conrelid::regclass, a.attname, id,
      pg_temp.row_of('stranger', k.conrelid) -> 'id') as changing
  from pg_constraint k join pg_attribute a on a.attrelid = k.conrelid and a.attnum = k.conkey[1]
    cross join lateral (values
      ('owner', (pg_temp.row_of('owner', k.confrelid) ->> 'id')::bigint),
      ('nothing', nextval(pg_get_serial_sequence(k.confrelid::regclass::text, 'id')))) v (target, id)
  where k.contype = 'f' and k.conrelid in (select pg_temp.relay_tables()) and k.confrelid in (select pg_temp.relay_tables());

select plan((select 1 + 16 * count(*) from tried)::int + (select 5 * count(*) from pointed where target = 'owner')::int);

select cmp_ok((select count(*) from pointed where target = 'owner'), '>=', 9::bigint, 'the foreign keys are found');

-- The owner. There is something to be found, or what follows would say nothing.
select matches(pg_temp.attempt('owner', reading), '^answer: [1-9]', 'owner: reads ' || relation) from tried;
select matches(pg_temp.attempt('owner', changing), '^answer: [1-9]', 'owner: changes ' || relation) from tried;
select is(pg_temp.attempt('stranger', pg_temp.insertion(relation, pg_temp.row_of('stranger', relation), 'user_id')), 'answer: 1',
  'the rows that are tried would be good ones: ' || relation) from tried;

-- Everybody else. Where authenticated may not delete, that is the answer to a stranger too.
select is(pg_temp.attempt('stranger', reading), 'answer: 0', 'stranger: reads nothing of ' || relation) from tried;
select is(pg_temp.attempt('stranger', changing), 'answer: 0', 'stranger: changes nothing of ' || relation) from tried;
select is(pg_temp.attempt('stranger', deleting), case when has_table_privilege('authenticated', relation, 'delete')
  then 'answer: 0' else '42501 permission denied for table ' || relation end, 'stranger: deletes nothing of ' || relation) from tried;
select is(pg_temp.attempt('stranger', adding), format('42501 new row violates row-level security policy for table "%s"', relation),
  'stranger: adds nothing in the owner''s name to ' || relation) from tried;
select matches(pg_temp.attempt('stranger', giving), '^42501 [^,]*$', 'stranger: gives the owner nothing of ' || relation) from tried;

select is(pg_temp.attempt('nobody', reading), 'answer: 0', 'nobody: reads nothing of ' || relation) from tried;
select is(pg_temp.attempt('nobody', changing), 'answer: 0', 'nobody: changes nothing of ' || relation) from tried;
select is(pg_temp.attempt('nobody', deleting), case when has_table_privilege('authenticated', relation, 'delete')
  then 'answer: 0' else '42501 permission denied for table ' || relation end, 'nobody: deletes nothing of ' || relation) from tried;
select is(pg_temp.attempt('nobody', adding), format('42501 new row violates row-level security policy for table "%s"', relation),
  'nobody: adds nothing to ' || relation) from tried;

select is(pg_temp.attempt('anon', reading), '42501 permission denied for table ' || relation, 'anon: does not read ' || relation)
  from tried;
select is(pg_temp.attempt('anon', changing), '42501 permission denied for table ' || relation, 'anon: does not change ' || relation)
  from tried;
select is(pg_temp.attempt('anon', deleting), '42501 permission denied for table ' || relation, 'anon: does not delete from ' || relation)
  from tried;
select is(pg_temp.attempt('anon', adding), '42501 permission denied for table ' || relation, 'anon: does not add to ' || relation)
  from tried;

-- References. A row of another user cannot be told from one that is not there.
select matches(pg_temp.attempt('stranger', adding), '^(23503|42501) [^,]*$',
  format('stranger: adds no row to %s whose %s is the owner''s', relation, named)) from pointed where target = 'owner';
select is(pg_temp.attempt('stranger', p.adding), pg_temp.attempt('stranger', n.adding),
  format('stranger: not theirs and not there are the same for a new %s of %s', p.named, p.relation))
  from pointed p join pointed n using (conname) where p.target = 'owner' and n.target = 'nothing';
select matches(pg_temp.attempt('stranger', changing), '^(23503|42501) [^,]*$',
  format('stranger: moves no %s of %s to the owner''s row', named, relation)) from pointed where target = 'owner';
select is(pg_temp.attempt('stranger', p.changing), pg_temp.attempt('stranger', n.changing),
  format('stranger: not theirs and not there are the same for a changed %s of %s', p.named, p.relation))
  from pointed p join pointed n using (conname) where p.target = 'owner' and n.target = 'nothing';

-- Nor does anybody else mix the rows of two users up, by whatever mistake.
select matches(pg_temp.attempt('operator', changing), '^23503 [^,]*$',
  format('whoever does it, no %s of %s is moved to another user''s row', named, relation)) from pointed where target = 'owner';

select * from finish(true);
rollback;
