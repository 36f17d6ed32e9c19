import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.apache.rocketmq.broker.BrokerController;
import org.apache.rocketmq.common.TopicConfig;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageDecoder;
import org.apache.rocketmq.common.subscription.SubscriptionGroupConfig;
import org.apache.rocketmq.store.ConsumeQueue;
import org.apache.rocketmq.store.DefaultMessageStore;
import org.apache.rocketmq.store.MessageExtBrokerInner;
import org.apache.rocketmq.store.SelectMappedBufferResult;
import org.apache.rocketmq.store.StoreCheckpoint;
import org.apache.rocketmq.store.config.MessageStoreConfig;

/** What is another one in release line 4. */
class Version {
    static final String NAME = "4.9.7";
    static final boolean LONG_TOPICS = false;

    static void configure(MessageStoreConfig store, String kind) {
    }

    static void registerFilters(BrokerController broker) {
    }

    static void batchTopic(BrokerController broker, String topic) {
        throw new UnsupportedOperationException("release line 4 has no batch queues");
    }

    static MessageExtBrokerInner innerBatch(BrokerController broker, MessageExtBrokerInner inner, int count) {
        throw new UnsupportedOperationException("release line 4 has no inner batches");
    }

    static byte[] encode(List<Message> messages) {
        return MessageDecoder.encodeMessages(messages);
    }

    static List<Map<String, Object>> queues(BrokerController broker, List<String[]> names) {
        List<Map<String, Object>> all = new ArrayList<>();
        for (String[] name : names) {
            ConsumeQueue queue =
                ((DefaultMessageStore) broker.getMessageStore()).findConsumeQueue(name[0], Integer.parseInt(name[1]));
            Map<String, Object> said = new LinkedHashMap<>();
            said.put("topic", name[0]);
            said.put("queueId", Integer.parseInt(name[1]));
            said.put("type", "SimpleCQ");
            said.put("min", queue.getMinOffsetInQueue());
            said.put("max", queue.getMaxOffsetInQueue());
            List<Map<String, Object>> entries = new ArrayList<>();
            for (long offset = queue.getMinOffsetInQueue(); offset < queue.getMaxOffsetInQueue(); offset++) {
                SelectMappedBufferResult rest = queue.getIndexBuffer(offset);
                ByteBuffer bytes = rest.getByteBuffer();
                Map<String, Object> entry = new TreeMap<>();
                entry.put("queueOffset", offset);
                entry.put("logOffset", bytes.getLong());
                entry.put("size", bytes.getInt());
                entry.put("tagsCode", bytes.getLong());
                entry.put("count", 1);
                entries.add(entry);
                rest.release();
            }
            said.put("entries", entries);
            all.add(said);
        }
        return all;
    }

    static Map<String, Object> checkpoint(String path) throws Exception {
        StoreCheckpoint checkpoint = new StoreCheckpoint(path);
        Map<String, Object> said = new TreeMap<>();
        said.put("log", checkpoint.getPhysicMsgTimestamp());
        said.put("queues", checkpoint.getLogicsMsgTimestamp());
        said.put("index", checkpoint.getIndexMsgTimestamp());
        return said;
    }

    static void tables(BrokerController broker) {
        for (String topic : new String[] {"t", "v6", "big", "many", "transactions"}) {
            broker.getTopicConfigManager().updateTopicConfig(new TopicConfig(topic, 4, 4, 6));
        }
        SubscriptionGroupConfig group = new SubscriptionGroupConfig();
        group.setGroupName("group-a");
        group.setRetryMaxTimes(5);
        group.setNotifyConsumerIdsChangedEnable(false);
        broker.getSubscriptionGroupManager().updateSubscriptionGroupConfig(group);
    }
}
